// Freshness over the last hour (less while the daemon is younger): the median as a line, up to the 99th of 100 as a band, documents as bars at the foot.
// The scale is logarithmic, because milliseconds and minutes both happen.

const SVG = 'http://www.w3.org/2000/svg';
/** What the chart spans, in seconds: the smallest that holds the daemon's life so far. */
const SPANS_S = [600, 1200, 1800, 3600];
const MARGIN = { left: 46, right: 6, top: 8, bottom: 22 };
const TICKS_S = [0.001, 0.01, 0.1, 1, 10, 60, 600, 3600, 36000];
const TICK_NAMES = ['1 ms', '10 ms', '100 ms', '1 s', '10 s', '1 min', '10 min', '1 h', '10 h'];

function draw(tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

class FreshnessChart {
  constructor(svg, readout) {
    this.svg = svg;
    this.readout = readout;
    this.buckets = new Map();
    this.bucketS = 10;
    this.startedAt = 0;
    this.chosen = null;
    svg.addEventListener('pointermove', (event) => this.choose(this.nearest(event.offsetX)));
    svg.addEventListener('pointerleave', () => this.choose(null));
    svg.addEventListener('blur', () => this.choose(null));
    svg.addEventListener('keydown', (event) => this.step(event));
    new ResizeObserver(() => this.draw()).observe(svg);
  }

  /** Rows of [start, documents, p50, p99, most]; what is known already is replaced. */
  add(rows) {
    for (const row of rows) this.buckets.set(row[0], row);
    this.draw();
  }

  /** What a daemon says first. */
  begin({ bucket_s: bucketS, started_at: startedAt, history }) {
    this.buckets.clear();
    this.chosen = null;
    this.bucketS = bucketS;
    this.startedAt = startedAt;
    this.add(history);
  }

  spanS(now) {
    return SPANS_S.find((span) => now - this.startedAt <= span) ?? SPANS_S[SPANS_S.length - 1];
  }

  shown(now) {
    const since = now - this.spanS(now);
    for (const at of this.buckets.keys()) if (at < since - this.bucketS) this.buckets.delete(at);
    return [...this.buckets.values()].filter((row) => row[0] >= since).sort((a, b) => a[0] - b[0]);
  }

  scales(rows, now) {
    const { width, height } = this.svg.getBoundingClientRect();
    const plot = { left: MARGIN.left, right: width - MARGIN.right, top: MARGIN.top, bottom: height - MARGIN.bottom };
    const span = this.spanS(now);
    const low = Math.min(0.01, ...rows.map((row) => row[2]));
    const high = Math.max(1, ...rows.map((row) => row[3])) * 1.15;
    const share = (seconds) => Math.log(Math.max(seconds, low) / low) / Math.log(high / low);
    return {
      plot, width, height, low, high, span,
      x: (at) => plot.right - ((now - at) / span) * (plot.right - plot.left),
      y: (seconds) => plot.bottom - share(seconds) * (plot.bottom - plot.top),
    };
  }

  draw() {
    const now = Date.now() / 1000;
    const rows = this.shown(now);
    const s = this.scales(rows, now);
    if (s.width < 60) return;
    this.last = { rows, s };
    this.svg.replaceChildren(...this.axes(s), ...this.bars(rows, s), ...this.lines(rows, s), ...this.cross(rows, s));
    if (rows.length === 0) {
      const place = { x: (s.plot.left + s.plot.right) / 2, y: (s.plot.top + s.plot.bottom) / 2, 'text-anchor': 'middle', class: 'none' };
      this.svg.append(draw('text', place, 'No change in the last hour'));
    }
    this.svg.setAttribute('aria-label', this.summary(rows));
  }

  summary(rows) {
    if (rows.length === 0) return 'Freshness over the last hour: no change was found.';
    const most = Math.max(...rows.map((row) => row[4]));
    const count = rows.reduce((sum, row) => sum + row[1], 0);
    return `Freshness over the last hour: ${plural(count, 'document')}, the slowest found ${durationText(most)} after its commit. Arrow keys read single values.`;
  }

  axes({ plot, y, low, high, span }) {
    const marks = [];
    TICKS_S.forEach((tick, i) => {
      if (tick < low * 0.99 || tick > high) return;
      const at = Math.round(y(tick)) + 0.5;
      marks.push(draw('line', { x1: plot.left, x2: plot.right, y1: at, y2: at, class: 'grid' }));
      marks.push(draw('text', { x: plot.left - 8, y: at + 4, 'text-anchor': 'end' }, TICK_NAMES[i]));
    });
    for (const share of plot.right - plot.left < 420 ? [1, 0.5, 0] : [1, 0.75, 0.5, 0.25, 0]) {
      const minutes = (span * share) / 60;
      const at = plot.right - share * (plot.right - plot.left);
      const anchor = share === 1 ? 'start' : share === 0 ? 'end' : 'middle';
      marks.push(draw('text', { x: at, y: plot.bottom + 17, 'text-anchor': anchor }, share ? `−${minutes} min` : 'now'));
    }
    return marks;
  }

  bars(rows, { plot, x, span }) {
    const most = Math.max(1, ...rows.map((row) => row[1]));
    const wide = Math.max(1.2, (plot.right - plot.left) * this.bucketS / span - 0.6);
    return rows.map((row) => {
      const tall = 2 + 30 * Math.sqrt(row[1] / most);
      const left = Math.max(plot.left, x(row[0]));
      return draw('rect', { x: left, y: plot.bottom - tall, width: Math.min(wide, plot.right - left), height: tall, class: 'bar' });
    });
  }

  /** Buckets that follow each other closely are joined. */
  runs(rows) {
    const runs = [];
    for (const row of rows) {
      const run = runs[runs.length - 1];
      if (run && row[0] - run[run.length - 1][0] <= 6 * this.bucketS) run.push(row);
      else runs.push([row]);
    }
    return runs;
  }

  lines(rows, { plot, x, y }) {
    const middle = (row) => Math.min(plot.right, Math.max(plot.left, x(row[0] + this.bucketS / 2))).toFixed(1);
    return this.runs(rows).flatMap((run) => {
      // A single bucket is as wide as it lasts.
      const ends = run.length > 1 ? run.map((row) => [middle(row), row]) : [[middle(run[0]) - 1.5, run[0]], [+middle(run[0]) + 1.5, run[0]]];
      const upper = ends.map(([at, row]) => `${at},${y(row[3]).toFixed(1)}`);
      const median = ends.map(([at, row]) => `${at},${y(row[2]).toFixed(1)}`);
      return [
        draw('polygon', { points: [...upper, ...[...median].reverse()].join(' '), class: 'band' }),
        draw('polyline', { points: median.join(' '), class: 'median' }),
      ];
    });
  }

  cross(rows, { plot, x, y }) {
    const row = rows.find((one) => one[0] === this.chosen);
    if (!row) return [];
    const at = Math.min(plot.right, x(row[0] + this.bucketS / 2));
    return [
      draw('line', { x1: at, x2: at, y1: plot.top, y2: plot.bottom, class: 'cross' }),
      draw('circle', { cx: at, cy: y(row[2]), r: 4.5, class: 'dot' }),
    ];
  }

  nearest(left) {
    if (!this.last || this.last.rows.length === 0) return null;
    const { rows, s } = this.last;
    const distance = (row) => Math.abs(s.x(row[0] + this.bucketS / 2) - left);
    return rows.reduce((best, row) => (distance(row) < distance(best) ? row : best))[0];
  }

  step(event) {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move || !this.last || this.last.rows.length === 0) return;
    event.preventDefault();
    const { rows } = this.last;
    const place = rows.findIndex((row) => row[0] === this.chosen);
    const next = place < 0 ? rows.length - 1 : Math.max(0, Math.min(rows.length - 1, place + move));
    this.choose(rows[next][0]);
  }

  choose(at) {
    this.chosen = at;
    const row = this.buckets.get(at);
    const time = row && new Date(row[0] * 1000).toLocaleTimeString('en-GB');
    setText(this.readout, row ? `${time} · median ${durationText(row[2])} · 99 of 100 ${durationText(row[3])} · ${plural(row[1], 'document')}` : '');
    this.draw();
  }
}
