// Each panel shows one part of the state. What a row holds is somebody's text: it only ever becomes text.

const OPERATIONS = { c: 'insert', u: 'update', d: 'delete', r: 'read' };
/** Later than this the index counts as behind, and the figure says how far instead of how fast. */
const LATE_S = 2;
const FEED_ROWS = 60;

function showProblems(problems) {
  const box = byId('problems');
  box.hidden = problems.length === 0;
  keyed(box, problems, (problem) => problem.name,
    () => h('div', { class: 'problem' }, h('p', {}, h('strong')), h('p')),
    (element, problem) => {
      setText(element.querySelector('strong'), problem.message);
      setText(element.lastChild, problem.hint ? `What to do: ${problem.hint}` : problem.name);
    });
}

function showFreshness(pulse, now) {
  const late = pulse.lag_s !== null && pulse.lag_s > LATE_S && pulse.lag_s > (pulse.freshness?.p99_s ?? 0);
  const shown = pulse.freshness ?? pulse.newest;
  let figure = ['–', ''];
  let sub = 'from commit to found; nothing has changed yet';
  if (late) {
    figure = duration(pulse.lag_s);
    sub = 'the oldest commit that is not found yet is this old';
  } else if (shown) {
    figure = duration(shown.p50_s);
    sub = pulse.freshness ? 'from commit to found, median of the last minute' : `from commit to found, ${ago(shown.at, now)}; all quiet since`;
  }
  byId('fresh').dataset.state = late ? 'late' : '';
  setText(byId('fresh-value'), figure[0]);
  setText(byId('fresh-unit'), figure[1]);
  setText(byId('fresh-sub'), sub);
  setText(byId('fresh-p99'), shown ? durationText(shown.p99_s) : '–');
  setText(byId('fresh-max'), pulse.hour ? durationText(pulse.hour.max_s) : '–');
  setText(byId('fresh-count'), pulse.hour ? plural(pulse.hour.count, 'document') : '–');
  document.title = shown || late ? `${figure.join(' ')} · cdc-agent` : 'cdc-agent';
}

function showStrip(pulse) {
  setFigure(byId('behind'), bytes(pulse.behind_bytes));
  setText(byId('behind-sub'), behindText(pulse));
  setText(byId('applied'), pulse.applied_lsn);
  setText(byId('captured'), pulse.captured_lsn === pulse.applied_lsn ? 'applied; captured the same' : `captured ${pulse.captured_lsn}`);
  const rate = pulse.changes_per_s;
  setFigure(byId('rate'), rate === null ? ['–', ''] : [rate >= 100 ? number(rate) : rate.toFixed(1), 'changes/s']);
  setText(byId('rate-sub'), `${plural(pulse.changes, 'change')} since start`);
  const avoided = pulse.cached + pulse.unchanged;
  const all = avoided + pulse.embedded;
  // Never 100 while anything was embedded.
  setFigure(byId('avoided'), all ? [Math.floor((avoided / all) * 100), '%'] : ['–', '']);
  setText(byId('avoided-sub'), `${number(avoided)} avoided, ${number(pulse.embedded)} done`);
}

/** What waits: changes, or, when every change is found, rows that a resync read. */
function behindText(pulse) {
  if (pulse.captured_lsn === pulse.applied_lsn) return pulse.behind_changes ? `${number(pulse.behind_changes)} resync rows wait` : 'all that is captured is found';
  const lag = pulse.lag_s === null ? 'age unknown' : durationText(pulse.lag_s);
  return `${plural(pulse.behind_changes, 'entry', 'entries')}, ${lag}`;
}

function showSlot(slot) {
  const kept = byId('kept');
  if (!slot) {
    setFigure(kept, ['–', '']);
    setText(byId('kept-sub'), 'the server does not say');
    return;
  }
  setFigure(kept, slot.retained_bytes === null ? ['–', ''] : bytes(slot.retained_bytes));
  const good = slot.wal_status === 'reserved';
  kept.dataset.state = good ? '' : slot.wal_status === 'extended' ? 'late' : 'bad';
  setText(byId('kept-sub'), `slot ${slot.name}${good ? '' : `, ${slot.wal_status}`}`);
}

function showCollections(generations) {
  const body = byId('collections').tBodies[0];
  keyed(body, generations, (one) => `${one.collection} ${one.generation}`,
    () => h('tr', {}, h('td', {}, h('strong')), h('td', { class: 'wide mono' }), h('td'), h('td', { class: 'wide' }), h('td', { class: 'number' }), h('td', { class: 'number' })),
    (row, one) => {
      const [name, table, state, model, documents, chunks] = row.children;
      setText(name.firstChild, one.collection);
      setText(table, one.table ?? '');
      showGeneration(state, one);
      setText(model, one.model);
      setText(documents, number(one.documents));
      setText(chunks, number(one.chunks));
    });
  const names = [...new Set(generations.map((one) => one.collection))];
  const select = byId('collection');
  if ([...select.options].map((option) => option.value).join() !== names.join()) {
    select.replaceChildren(...names.map((name) => h('option', { value: name }, name)));
    select.hidden = names.length < 2;
  }
}

function showGeneration(cell, one) {
  const copying = one.state === 'building' || one.copy === 'running';
  const share = one.rows_estimated ? one.rows_done / one.rows_estimated : 0;
  const tone = one.state === 'live' ? 'good' : 'warn';
  if (cell.dataset.shown !== one.state) {
    cell.dataset.shown = one.state;
    cell.replaceChildren(`${one.generation} `, h('span', { class: 'badge', 'data-tone': tone }, one.state), h('span', { class: 'sub' }));
  }
  const left = one.eta_s ? `, ${durationText(one.eta_s)} left` : '';
  setText(cell.lastChild, copying && one.copy !== 'done' ? ` ${Math.floor(share * 100)} % copied${left}` : one.why_not && one.state === 'building' ? ` ${one.why_not}` : '');
}

function showAgents(agents, stream) {
  keyed(byId('agents').tBodies[0], agents, (agent) => agent.name,
    () => h('tr', {}, h('td', {}, h('strong')), h('td', {}, h('span', { class: 'badge' })), h('td', { class: 'wide' }), h('td', { class: 'wide mono' }), h('td', { class: 'number' }), h('td', { class: 'number' })),
    (row, agent) => {
      const [name, state, collections, applied, offset, behind] = row.children;
      setText(name.firstChild, agent.name);
      state.firstChild.dataset.tone = { live: 'good', building: 'warn', failed: 'bad' }[agent.state];
      setText(state.firstChild, agent.state);
      setText(collections, agent.collections.join(', '));
      setText(applied, agent.applied_lsn);
      setText(offset, number(agent.offset));
      setText(behind, plural(agent.behind, 'entry', 'entries'));
    });
  setText(byId('stream'), `The stream holds ${bytesText(stream.bytes)} of at most ${bytesText(stream.max_bytes)}; its newest entry is ${number(stream.head)}.`);
}

function showFeed(changes) {
  const feed = byId('feed');
  const isFirst = feed.children.length === 0;
  for (const change of changes) {
    if (change.op === 'r' && joinedReads(feed.firstChild, change)) continue;
    feed.prepend(h('li', { class: isFirst ? null : 'new', 'data-table': change.table, 'data-reads': change.op === 'r' ? 1 : null },
      h('span', { class: 'op', 'data-op': change.op }, OPERATIONS[change.op] ?? change.op),
      h('span', { class: 'doc mono', title: change.collection }, h('span', { class: 'table' }, `${shortTable(change.table)} `), (change.key ?? []).join(', ')),
      h('span', { class: 'cost' }, cost(change)),
      h('span', { class: 'age', title: change.age_s === null ? 'read by a resync' : 'from commit to found' }, change.age_s === null ? '–' : durationText(change.age_s))));
  }
  while (feed.children.length > FEED_ROWS) feed.lastChild.remove();
  byId('feed-empty').hidden = feed.children.length > 0;
}

/** A resync reads thousands of rows: those that follow each other are one line, and changes stay in sight. */
function joinedReads(row, change) {
  if (row?.dataset.reads === undefined || row.dataset.table !== change.table) return false;
  row.dataset.reads = Number(row.dataset.reads) + 1;
  row.querySelector('.doc').lastChild.textContent = plural(Number(row.dataset.reads), 'row');
  setText(row.querySelector('.cost'), 'resync');
  return true;
}

const shortTable = (table) => table.replace(/^public\./, '');

/** What a change cost: chunks that got new text, other metadata, or stayed. */
function cost(change) {
  if (change.op === 'd') return '';
  const parts = [];
  if (change.new) parts.push(`${change.new} new`);
  if (change.moved) parts.push(`${change.moved} retagged`);
  const kept = change.kept - change.moved;
  if (kept > 0) parts.push(`${kept} kept`);
  return parts.join(', ') || 'no text';
}

function showLetters(letters) {
  setText(byId('letters-count'), letters.count ? number(letters.count) : '');
  byId('letters-empty').hidden = letters.count > 0;
  const all = byId('letters-all');
  all.hidden = letters.count < 2;
  if (!all.firstChild) {
    const every = { all: true };
    all.append(act('Replay all', '/dead-letters/replay', 'Their rows are read again', { body: every }), act('Discard all', '/dead-letters/discard', 'Discarded', { body: every, twice: true }));
  }
  const hidden = letters.count - letters.first.length;
  setText(byId('letters-more'), hidden > 0 ? `and ${number(hidden)} more; cdc-agent dead-letters list names them` : '');
  keyed(byId('letters'), letters.first, (letter) => letter.id,
    (letter) => h('li', {},
      h('span', { class: 'title mono' }, letter.document_id),
      h('span', { class: 'does' }, act('Replay', `/dead-letters/${letter.id}/replay`, 'The row is read again'), act('Discard', `/dead-letters/${letter.id}/discard`, 'Discarded', { twice: true })),
      h('span', { class: 'sub' })),
    (row, letter) => {
      const age = ago(Date.parse(letter.parked_at) / 1000, Date.now() / 1000);
      setText(row.lastChild, `${letter.error} · ${letter.reason} · parked ${age}`);
    });
}

const SAGA_STATES = { waiting: 'waiting for an approval', stuck: 'stuck: something cannot be undone', orphaned: 'orphaned: declared otherwise now' };

/** How many sagas are under way, and those that wait for somebody. */
function showSagas(sagas) {
  byId('sagas-panel').hidden = sagas === null;
  if (sagas === null) return;
  const states = Object.entries(sagas.counts);
  setText(byId('sagas-states'), states.map(([state, count]) => `${number(count)} ${SAGA_STATES[state] ?? state}`).join(', ') || 'None is under way.');
  const hidden = (sagas.counts.waiting ?? 0) - sagas.waiting.length;
  setText(byId('sagas-more'), sagas.waiting.length && hidden > 0 ? `and ${number(hidden)} more; cdc-agent sagas list names them` : '');
  keyed(byId('sagas-waiting'), sagas.waiting, (saga) => `${saga.id} ${saga.step}`,
    (saga) => {
      const path = `/sagas/${saga.id}`;
      return h('li', {},
        h('span', { class: 'title mono' }, `${saga.saga} ${saga.key}`),
        h('span', { class: 'does' }, act('Approve', `${path}/approve`, 'Approved', { body: { step: saga.step }, twice: true }), act('Reject', `${path}/reject`, 'Rejected', { body: { step: saga.step }, twice: true })),
        h('span', { class: 'sub' }));
    },
    (row, saga) => {
      setText(row.lastChild, `waits for ${saga.step} · ${saga.id} · until ${saga.due_at} · begun ${ago(Date.parse(saga.started_at) / 1000, Date.now() / 1000)}`);
    });
}

function showResyncs(resyncs) {
  byId('resyncs-empty').hidden = resyncs.length > 0;
  keyed(byId('resyncs'), resyncs, (resync) => resync.id,
    () => h('li', {}, h('span', { class: 'title' }), h('span', { class: 'does' }), h('progress', { max: 1, value: 0 }), h('span', { class: 'sub' })),
    (row, resync) => {
      const [title, does, progress, sub] = row.children;
      const open = resync.state === 'running' || resync.state === 'paused';
      setText(title, `${shortTable(resync.table)}${resync.keys.length ? `, ${plural(resync.keys.length, 'key')}` : ''}${resync.where ? `, where ${resync.where}` : ''}`);
      if (does.dataset.state !== resync.state) {
        does.dataset.state = resync.state;
        const path = `/resyncs/${resync.id}`;
        const toggle = resync.state === 'paused' ? act('Resume', `${path}/resume`, 'It goes on') : act('Pause', `${path}/pause`, 'Paused');
        does.replaceChildren(...(open ? [toggle, act('Cancel', `${path}/cancel`, 'Cancelled', { twice: true })] : [h('span', { class: 'badge', 'data-tone': resync.state === 'done' ? 'good' : 'bad' }, resync.state)]));
      }
      const total = resync.keys.length || resync.rows_estimated;
      progress.hidden = !open;
      progress.value = total ? Math.min(1, resync.rows_done / total) : 0;
      progress.setAttribute('aria-label', `Resync of ${resync.table}`);
      setText(sub, resyncText(resync, open, total));
    });
}

function resyncText(resync, open, total) {
  const parts = [];
  if (open) {
    const of = total > resync.rows_done ? ` of about ${number(total)}` : '';
    parts.push(`${resync.state === 'paused' ? 'paused at ' : ''}${number(resync.rows_done)}${of} rows`);
    if (resync.rows_per_s && resync.state === 'running') parts.push(`${number(resync.rows_per_s)} rows/s`);
    if (resync.eta_s && resync.state === 'running') parts.push(`${durationText(resync.eta_s)} left`);
  } else {
    parts.push(plural(resync.rows_done, 'row'));
    if (resync.finished_at) parts.push(ago(Date.parse(resync.finished_at) / 1000, Date.now() / 1000));
  }
  if (resync.reason) parts.push(resync.reason);
  if (resync.error) parts.push(resync.error);
  return parts.join(' · ');
}

function showHits(answer, tookS) {
  const hits = byId('hits');
  const now = Date.now() / 1000;
  byId('hits-empty').hidden = true;
  setText(byId('found'), `${plural(answer.hits.length, 'hit')} in ${durationText(tookS)}, complete up to ${answer.applied_lsn}`);
  hits.replaceChildren(...answer.hits.map((hit) => h('li', {},
    h('span', { class: 'score', title: 'Cosine similarity' }, hit.score.toFixed(2)),
    h('span', { class: 'text' }, hit.text.replace(/\n\s*\n/g, '\n')),
    h('span', { class: 'source' },
      h('span', { class: 'mono' }, `${shortTable(hit.source.table)} ${hit.source.pk}`),
      h('span', { title: `commit ${hit.source.commit_lsn}, ${hit.source.commit_ts}` }, `written ${ago(Date.parse(hit.source.commit_ts) / 1000, now)}`),
      hit.stale ? h('span', { class: 'badge', 'data-tone': 'warn' }, 'an older version: the newest could not be indexed') : null))));
}
