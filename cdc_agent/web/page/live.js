// The connection: a stream of events read with fetch, because only that can carry a token, and what people do.

const chart = new FreshnessChart(byId('chart'), byId('chart-read'));
const RETRY_FIRST_MS = 300;
const RETRY_MOST_MS = 5000;
/** A stream that says nothing for so long is dead: the daemon speaks every second. */
const SILENCE_MS = 15000;
/** How long a second click may take to confirm. */
const SURE_MS = 4000;

let started = null;
let newestChange = 0;
let searchWaits = false;
let toastTimer = 0;

const token = () => sessionStorage.getItem('cdc-agent.token');

function call(path, options = {}) {
  const headers = { ...options.headers };
  if (token()) headers.authorization = `Bearer ${token()}`;
  return fetch(path, { ...options, headers, cache: 'no-store', credentials: 'omit' });
}

// -- what arrives ----------------------------------------------------------------------------------------------

const receive = {
  hello(hello) {
    // Another life of the daemon counts from the beginning.
    if (started !== hello.started_at) {
      byId('feed').replaceChildren();
      newestChange = 0;
    }
    started = hello.started_at;
    chart.begin(hello);
    setText(byId('where'), hello.source);
    const since = new Date(hello.started_at * 1000).toLocaleString('en-GB', { dateStyle: 'medium', timeStyle: 'short' });
    setText(byId('foot'), `cdc-agent ${hello.version} · slot ${hello.slot}, ${hello.plugin} · running since ${since}`);
  },
  changes(changes) {
    // After a reconnection the first ones are known already.
    showFeed(changes.filter((change) => change.number > newestChange));
    newestChange = changes[changes.length - 1].number;
  },
  state(state) {
    const now = Date.now() / 1000;
    if (state.pulse) {
      showFreshness(state.pulse, now);
      showStrip(state.pulse);
      showAgents(state.pulse.agents, state.pulse.stream);
      chart.add(state.pulse.buckets);
    }
    if (state.problems) showProblems(state.problems);
    if ('slot' in state) showSlot(state.slot);
    if ('sagas' in state) showSagas(state.sagas);
    if (state.work) {
      showCollections(state.work.collections);
      if (searchWaits) {
        searchWaits = false;
        byId('search').requestSubmit();
      }
      showResyncs(state.work.resyncs);
      showLetters(state.work.dead_letters);
    }
    if (state.pulse) link('live', state.problems?.length ? 'Live, with problems' : 'Live');
  },
  bye() {
    link('lost', 'The daemon stops');
  },
};

function link(state, text) {
  byId('link').dataset.state = state;
  setText(byId('link-text'), text);
  document.body.classList.toggle('stale', state === 'lost');
}

// -- the stream ------------------------------------------------------------------------------------------------

async function watch() {
  const gone = new AbortController();
  let silence = setTimeout(() => gone.abort(), SILENCE_MS);
  try {
    const answer = await call('/live', { signal: gone.signal });
    if (answer.status === 401 || answer.status === 403) return await refused(answer);
    if (!answer.ok) throw new Error(`the daemon answers ${answer.status}`);
    showPermissions();
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = '';
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return true;
      clearTimeout(silence);
      silence = setTimeout(() => gone.abort(), SILENCE_MS);
      const events = (text + value).split('\n\n');
      text = events.pop();
      events.forEach(dispatch);
    }
  } finally {
    clearTimeout(silence);
  }
}

function dispatch(event) {
  const [, name, data] = /^event: (\w+)\ndata: (.*)$/s.exec(event) || [];
  if (name in receive) receive[name](JSON.parse(data));
}

/** What this token may not do is not offered. */
async function showPermissions() {
  const answer = await call('/whoami').catch(() => null);
  const { scopes } = answer?.ok ? await answer.json() : { scopes: [] };
  document.body.classList.toggle('no-admin', !scopes.includes('admin'));
  byId('search-panel').hidden = !scopes.includes('search');
}

async function refused(answer) {
  link('lost', 'A token is needed');
  const reason = await answer.json().catch(() => ({}));
  if (token()) setText(byId('door-sub'), `${reason.error ?? 'The token is refused'}. ${reason.hint ?? ''}`);
  sessionStorage.removeItem('cdc-agent.token');
  byId('door').showModal();
  await new Promise((opened) => byId('door').addEventListener('close', opened, { once: true }));
  return true;
}

async function watchForEver() {
  let wait = RETRY_FIRST_MS;
  for (;;) {
    try {
      if (await watch()) wait = RETRY_FIRST_MS;
    } catch (error) {
      // The next try tells the same if it is not over.
      console.info(`cdc-agent: the stream was lost: ${error.message}`);
    }
    link('lost', 'Reconnecting');
    await new Promise((over) => setTimeout(over, wait));
    wait = Math.min(RETRY_MOST_MS, wait * 2);
  }
}

// -- what people do --------------------------------------------------------------------------------------------

function toast(text) {
  const box = byId('toast');
  setText(box, text);
  box.hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { box.hidden = true; }, 6000);
}

/** A button that posts; what cannot be taken back asks to be pressed twice. */
function act(name, path, done, { twice = false, body = null } = {}) {
  const button = h('button', { type: 'button', class: 'small' }, name);
  button.addEventListener('click', async () => {
    if (twice && !button.classList.contains('sure')) {
      button.classList.add('sure');
      setText(button, `${name}?`);
      setTimeout(() => { button.classList.remove('sure'); setText(button, name); }, SURE_MS);
      return;
    }
    button.disabled = true;
    const sent = body && { headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) };
    const answer = await call(path, { method: 'POST', ...sent }).catch(() => null);
    const told = await answer?.json().catch(() => null);
    button.disabled = false;
    toast(answer?.ok ? `${done}.` : `${told?.error ?? 'The daemon does not answer'}. ${told?.hint ?? ''}`);
  });
  return button;
}

async function search(event) {
  event.preventDefault();
  const query = byId('query').value.trim();
  const collection = byId('collection').value;
  if (!query) return;
  if (!collection) {
    // Asked before the daemon has said what there is: answered as soon as it has.
    setText(byId('found'), 'Waiting for the daemon');
    searchWaits = true;
    return;
  }
  const began = performance.now();
  setText(byId('found'), 'Searching');
  const answer = await call('/search', {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ collection, query, k: 5 }),
  }).catch(() => null);
  const body = await answer?.json().catch(() => null);
  if (answer?.ok) showHits(body, (performance.now() - began) / 1000);
  else setText(byId('found'), `${body?.error ?? 'The daemon does not answer'}. ${body?.hint ?? ''}`);
}

function isDark() {
  const theme = document.documentElement.dataset.theme;
  return theme ? theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
}

function showTheme() {
  byId('theme').setAttribute('aria-label', `Switch to ${isDark() ? 'light' : 'dark'} colours`);
}

function switchTheme() {
  const theme = isDark() ? 'light' : 'dark';
  document.documentElement.dataset.theme = theme;
  localStorage.setItem('cdc-agent.theme', theme);
  showTheme();
}

const kept = localStorage.getItem('cdc-agent.theme');
if (kept) document.documentElement.dataset.theme = kept;
showTheme();
byId('theme').addEventListener('click', switchTheme);
byId('search').addEventListener('submit', search);
byId('token-form').addEventListener('submit', (event) => {
  event.preventDefault();
  sessionStorage.setItem('cdc-agent.token', byId('token').value.trim());
  byId('token').value = '';
  byId('door').close();
});
byId('door').addEventListener('cancel', (event) => event.preventDefault());
document.addEventListener('keydown', (event) => {
  const isTyping = event.target.closest?.('input, select, textarea, dialog');
  if (event.key === '/' && !isTyping && !event.metaKey && !event.ctrlKey && !event.altKey) {
    event.preventDefault();
    byId('query').focus();
  }
});
watchForEver();
