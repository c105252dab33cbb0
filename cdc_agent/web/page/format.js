// Numbers and times as people read them, and elements made without ever parsing text as markup.

const byId = (id) => document.getElementById(id);

/** An element with attributes and children; text only ever becomes text. */
function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === 'onclick') element.addEventListener('click', value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? '' : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const whole = new Intl.NumberFormat('en');
const number = (value) => whole.format(Math.round(value));
const plural = (count, one, many = one + 's') => `${number(count)} ${count === 1 ? one : many}`;

/** Seconds as a number and its unit. */
function duration(seconds) {
  if (seconds < 0.0995) return [(seconds * 1000).toFixed(seconds < 0.00995 ? 1 : 0), 'ms'];
  if (seconds < 0.9995) return [(seconds * 1000).toFixed(0), 'ms'];
  if (seconds < 9.95) return [seconds.toFixed(2), 's'];
  if (seconds < 99.5) return [seconds.toFixed(0), 's'];
  if (seconds < 5400) return [(seconds / 60).toFixed(0), 'min'];
  if (seconds < 172800) return [(seconds / 3600).toFixed(0), 'h'];
  return [(seconds / 86400).toFixed(0), 'days'];
}
const durationText = (seconds) => duration(seconds).join(' ');

function ago(at, now) {
  const seconds = Math.max(0, Math.round(now - at));
  if (seconds < 2) return 'just now';
  return `${seconds < 100 ? `${seconds} s` : durationText(seconds)} ago`;
}

function bytes(count) {
  const units = ['B', 'kB', 'MB', 'GB', 'TB'];
  let place = 0;
  while (count >= 999.5 && place < units.length - 1) { count /= 1000; place += 1; }
  return [place === 0 || count >= 99.5 ? count.toFixed(0) : count.toPrecision(count >= 9.95 ? 3 : 2), units[place]];
}
const bytesText = (count) => bytes(count).join(' ');

/** A figure with its unit set smaller. */
function setFigure(element, [value, unit]) {
  const text = `${value}\u00a0${unit}`;
  if (element.dataset.shown === text) return;
  element.dataset.shown = text;
  element.replaceChildren(value, h('span', { class: 'unit' }, unit));
}

/** Keep the children of a list in step with items, moving what stays instead of making it anew. */
function keyed(list, items, keyOf, create, update) {
  const known = new Map([...list.children].map((child) => [child.dataset.key, child]));
  items.forEach((item, place) => {
    const key = String(keyOf(item));
    let child = known.get(key);
    known.delete(key);
    if (!child) {
      child = create(item);
      child.dataset.key = key;
    }
    update(child, item);
    if (list.children[place] !== child) list.insertBefore(child, list.children[place] || null);
  });
  for (const child of known.values()) child.remove();
}
