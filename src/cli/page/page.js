// SPDX-License-Identifier: LGPL-2.1-or-later
//
// A chain to look around in.  The data are in #data, as draw_page.c writes them:
//
//   unit           bytes that the numbers of runs count
//   start, end     what is shown, in units
//   own, view, merged
//                  runs: [length, code, length, code, ...] from start on.  A code is kind + 8 * layer; in
//                  its place [code, length, code, length, ...] for a cell that holds several things
//   charts         rows from the top down: { row: "own" | "view" | "moves" | "merged", layer, label, note }
//
// Names are set as text, never as markup.
'use strict';

(() => {
  const SVG = 'http://www.w3.org/2000/svg';
  const KIND = { absent: 0, zero: 1, packed: 2, data: 3, many: 4 };
  const WORDS = ['nothing here', 'zeros', 'compressed data', 'data', 'several things'];
  const ORDER = [4, 3, 1, 0, 2]; // in a column, from below: data, compressed, many, zeros, nothing
  const HIGH = 30, VISIBLE = 3, COLOURS = 8, LEAST_CELLS = 16;
  const data = JSON.parse(document.getElementById('data').textContent);
  const { unit, start, end, layers } = data;
  const span = end - start;
  const least = Math.min(span, LEAST_CELLS * data.grain);
  const reduced = matchMedia('(prefers-reduced-motion: reduce)').matches;

  // ---- runs ----

  const kindOf = (code) => code % 8;
  const layerOf = (code) => Math.floor(code / 8);

  // { at: [...starts, end], parts: [[code, length], ...] each }
  function decode(flat) {
    const at = [], parts = [];
    let pos = start;
    for (let i = 0; i < flat.length; i += 2) {
      const code = flat[i + 1];
      at.push(pos);
      if (Array.isArray(code)) {
        const list = [];
        for (let k = 0; k < code.length; k += 2) list.push([code[k], code[k + 1]]);
        list.sort((a, b) => ORDER[kindOf(a[0])] - ORDER[kindOf(b[0])] || a[0] - b[0]);
        parts.push(list);
      } else {
        parts.push([[code, flat[i]]]);
      }
      pos += flat[i];
    }
    at.push(pos);
    return { at, parts };
  }

  // The run that holds pos, or -1.
  function find(runs, pos) {
    let low = 0, high = runs.parts.length - 1;
    if (high < 0 || pos < runs.at[0] || pos >= runs.at[high + 1]) return -1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (runs.at[middle] <= pos) low = middle; else high = middle - 1;
    }
    return low;
  }

  const own = data.own.map(decode);
  const view = decode(data.view);
  const merged = data.merged && decode(data.merged);
  const range = data.range;

  // ---- words ----

  function exact(units) {
    return String(BigInt(units) * BigInt(unit)).replace(/\B(?=(\d{3})+$)/g, '\u202f');
  }

  function size(units) {
    let bytes = BigInt(Math.round(units)) * BigInt(unit), u = 0;
    const names = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB'];
    let rest = 0n;
    while (bytes >= 1024n) { rest = bytes % 1024n; bytes /= 1024n; u++; }
    const tenths = rest * 10n / 1024n;
    return bytes + (rest && bytes < 100n ? '.' + tenths : '') + '\u00a0' + names[u];
  }

  const hex = (units) => '0x' + (BigInt(units) * BigInt(unit)).toString(16);

  function offset(units) {
    let bytes = BigInt(units) * BigInt(unit), u = 0;
    while (bytes && bytes % 1024n === 0n && u < 6) { bytes /= 1024n; u++; }
    return bytes + (' KMGTPE'[u]).trim();
  }

  // ---- rows ----

  // What a row paints: layers of paint, from the back to the front.  take(code) -> class or nothing.
  function paints(row) {
    const colour = (code) => 'c' + layerOf(code) % COLOURS;
    const isData = (code) => kindOf(code) === KIND.data || kindOf(code) === KIND.packed;
    const is = (kind) => (code) => kindOf(code) === kind;
    const all = (runs, extra, filter) => [
      { runs, take: (c) => filter(c) && isData(c) && extra + colour(c) },
      { runs, take: (c) => filter(c) && is(KIND.packed)(c) && extra + 'packed' },
      { runs, take: (c) => filter(c) && is(KIND.zero)(c) && extra + 'zero' },
      { runs, take: (c) => filter(c) && is(KIND.many)(c) && 'many' },
    ];
    const yes = () => true;
    if (row.row === 'view') return all(view, '', yes);
    const told = (c) => kindOf(c) !== KIND.absent && kindOf(c) !== KIND.many;
    const moves = (c) => told(c) && layerOf(c) > range.base && layerOf(c) <= range.top;
    const hatch = (alone, filter) => ({ runs: merged, alone, take: (c) => filter(c) && kindOf(c) !== KIND.many && 'hatch' });
    if (row.row === 'moves')
      return [...all(merged, '', moves).map((p) => ({ ...p, alone: true })), hatch(true, moves)];
    if (row.row === 'merged') {
      const seen = (c) => told(c) && layerOf(c) >= range.base && layerOf(c) <= range.top;
      return [...all(merged, 'pale ', yes), ...all(view, '', seen).map((p) => ({ ...p, alone: true })),
        hatch(false, moves)];
    }
    const mine = (c) => told(c) && layerOf(c) === row.layer;
    const list = [...all(own[row.layer], 'pale ', yes), ...all(view, '', mine).map((p) => ({ ...p, alone: true }))];
    if (row.hatched) list.push(hatch(true, (c) => mine(c) && moves(c)));
    return list;
  }

  const main = (row) => row.row === 'view' ? view : row.row === 'own' ? own[row.layer] : merged;

  function columnBoxes({ total, parts, x0, x1 }, paint, put) {
    let y = HIGH;
    for (const [code, length] of parts) {
      const name = paint.take(code);
      if (kindOf(code) === KIND.absent || (paint.alone && !name)) continue;
      const height = Math.min(y, Math.max(VISIBLE, length / total * HIGH));
      y -= height;
      if (name && height > 0) put(name, x0, x1, y, height);
    }
  }

  // What is in sight, as { x0, x1, total, parts }: runs that are narrower than a pixel are put together in columns of one.
  function columnsOf(runs, a, b, width) {
    const scale = width / (b - a), list = [];
    let column = -1, bin = null;
    const flush = () => {
      if (!bin) return;
      const parts = [...bin].sort((p, q) => ORDER[kindOf(p[0])] - ORDER[kindOf(q[0])] || p[0] - q[0]);
      list.push({ x0: column, x1: column + 1, total: parts.reduce((sum, p) => sum + p[1], 0), parts });
      bin = null;
    };
    for (let i = Math.max(0, find(runs, Math.max(a, start))); i < runs.parts.length && runs.at[i] < b; i++) {
      const x0 = (runs.at[i] - a) * scale, x1 = (runs.at[i + 1] - a) * scale;
      if (x1 - x0 >= 1) {
        flush();
        list.push({ x0: Math.max(-2, x0), x1: Math.min(width + 2, x1), total: runs.at[i + 1] - runs.at[i], parts: runs.parts[i] });
        continue;
      }
      const x = Math.floor((x0 + x1) / 2);
      if (x !== column) { flush(); column = x; }
      bin = bin || new Map();
      for (const [code, length] of runs.parts[i]) bin.set(code, (bin.get(code) || 0) + length);
    }
    flush();
    return list;
  }

  // Many strips paint the same runs.
  let columns = new Map(), columnsFor = '';
  function paintRuns(runs, a, b, width, paint, put) {
    const key = a + ' ' + b + ' ' + width;
    if (key !== columnsFor) { columns = new Map(); columnsFor = key; }
    if (!columns.has(runs)) columns.set(runs, columnsOf(runs, a, b, width));
    for (const column of columns.get(runs)) {
      if (column.parts.length > 1) {
        columnBoxes(column, paint, put);
      } else {
        const name = paint.take(column.parts[0][0]);
        if (name) put(name, column.x0, column.x1, 0, HIGH);
      }
    }
  }

  // ---- the charts ----

  const make = (name, className, text) => {
    const e = document.createElement(name);
    if (className) e.className = className;
    if (text !== undefined) e.textContent = text;
    return e;
  };
  const makeSvg = (name, attributes) => {
    const e = document.createElementNS(SVG, name);
    for (const k of Object.keys(attributes)) e.setAttribute(k, attributes[k]);
    return e;
  };

  const rows = []; // of all charts
  const rulers = [];
  let from = start, to = end;  // what is in sight, in units; not whole ones
  let cursor = null;           // { row, pos }

  function makeRow(row, chart) {
    const box = make('div', 'row' + (row.row === 'view' ? ' apart' : ''));
    const label = make('div', 'label');
    label.append(make('div', 'name', row.label), make('div', 'soft', row.note));
    label.title = row.title || row.label;
    if (row.mark) label.dataset.mark = row.mark;
    const strip = makeSvg('svg', { class: 'strip', height: HIGH + 2, tabindex: 0, role: 'slider',
      'aria-label': row.label + ', ' + row.note, 'aria-valuemin': 0, 'aria-valuemax': 100, 'aria-valuenow': 0 });
    const state = { row, strip, runs: main(row), paints: paints(row), paths: new Map() };
    state.track = makeSvg('rect', { class: 'track', y: 0.5, height: HIGH });
    strip.append(state.track);
    state.mark = makeSvg('rect', { class: 'cursor', y: 0, height: HIGH + 2, width: 2 });
    state.paintGroup = makeSvg('g', {});
    state.words = makeSvg('g', { 'aria-hidden': 'true' });
    strip.append(state.paintGroup, state.words, state.mark);
    strip.dataset.row = rows.length;
    box.append(label, strip);
    chart.append(box);
    rows.push(state);
  }

  function drawRow(state) {
    const width = state.strip.clientWidth || 800;
    const paths = new Map();
    const put = (order) => (name, x0, x1, y, height) => {
      const key = order + ' ' + name;
      const d = 'M' + x0.toFixed(2) + ' ' + (y + 0.5) + 'H' + Math.max(x1, x0 + 1).toFixed(2) + 'v' +
        height.toFixed(2) + 'H' + x0.toFixed(2) + 'z';
      if (paths.has(key)) paths.get(key).push(d); else paths.set(key, [d]);
    };
    state.paints.forEach((paint, order) => paintRuns(paint.runs, from, to, width, paint, put(order)));
    state.paintGroup.replaceChildren(...[...paths.keys()].sort((a, b) => parseInt(a, 10) - parseInt(b, 10))
      .map((key) => makeSvg('path', { class: key.slice(key.indexOf(' ') + 1), d: paths.get(key).join('') })));
    const stop = state.runs.at[state.runs.at.length - 1];
    const x0 = Math.max(0, (start - from) / (to - from) * width), x1 = Math.min(width, (stop - from) / (to - from) * width);
    state.track.setAttribute('x', x0);
    state.track.setAttribute('width', Math.max(0, x1 - x0));
    drawWords(state, width);
    drawCursor(state, width);
  }

  // Layers' numbers, where runs are wide enough.
  function drawWords(state, width) {
    const list = [];
    if (state.row.row === 'view') {
      for (let i = Math.max(0, find(view, Math.max(from, start))); i < view.parts.length && view.at[i] < to; i++) {
        const [code] = view.parts[i][0];
        const x0 = Math.max(0, (view.at[i] - from) / (to - from) * width);
        const x1 = Math.min(width, (view.at[i + 1] - from) / (to - from) * width);
        if (view.parts[i].length > 1 || x1 - x0 < 22 || kindOf(code) !== KIND.data || list.length > 200) continue;
        const text = makeSvg('text', { class: 'on ' + (layerOf(code) % 2 ? 'on-light' : 'on-dark'), x: (x0 + x1) / 2, y: HIGH / 2 + 5 });
        text.textContent = layerOf(code) + 1;
        list.push(text);
      }
    }
    state.words.replaceChildren(...list);
  }

  function drawCursor(state, width) {
    const shown = cursor && cursor.pos >= from && cursor.pos < to;
    state.mark.setAttribute('visibility', shown ? 'visible' : 'hidden');
    if (shown) state.mark.setAttribute('x', (cursor.pos - from) / (to - from) * width - 1);
  }

  function drawRuler(ruler) {
    const width = ruler.clientWidth || 800;
    const ticks = [];
    let step = 1;
    while ((to - from) / step * 80 > width) step *= 2;
    for (let at = Math.ceil(from / step) * step; at < to; at += step) {
      const x = (at - from) / (to - from) * width;
      ticks.push(makeSvg('path', { class: 'tick', d: 'M' + x.toFixed(1) + ' 4V22' }));
      if (x < width - 34) {
        const text = makeSvg('text', { class: 'soft', x: x + 4, y: 14 });
        text.textContent = offset(at);
        ticks.push(text);
      }
    }
    ruler.replaceChildren(...ticks);
  }

  // ---- what is in sight ----

  const status = document.getElementById('sight');
  const overview = document.getElementById('overview');
  const frame = makeSvg('rect', { class: 'frame', y: 0.75, height: 20.5 });
  let asked = false;

  function draw() {
    asked = false;
    rulers.forEach(drawRuler);
    const bottom = innerHeight + 200;
    for (const state of rows) {
      const box = state.strip.getBoundingClientRect();
      if (printing || (box.bottom > -200 && box.top < bottom)) drawRow(state);
    }
    const width = overview.clientWidth || 800;
    frame.setAttribute('x', Math.max(0.75, (from - start) / span * width));
    frame.setAttribute('width', Math.max(4, (to - from) / span * width - 1.5));
    const whole = to - from >= span;
    status.textContent = whole ? 'all of it: ' + size(span)
      : 'from ' + size(Math.floor(from)) + ', ' + size(Math.round(to - from)) + ' of ' + size(span);
    document.body.dataset.from = Math.round(from);
    document.body.dataset.to = Math.round(to);
  }

  let printing = false;
  const ask = () => { if (!asked) { asked = true; requestAnimationFrame(draw); } };

  function look(a, b) {
    const length = Math.min(span, Math.max(least, b - a));
    a = Math.min(Math.max(start, a + (b - a - length) / 2), end - length);
    from = a;
    to = a + length;
    hideTip();
    ask();
  }

  const zoom = (factor, pos) => {
    const at = pos === undefined ? (from + to) / 2 : pos;
    const length = Math.min(span, Math.max(least, (to - from) * factor));
    const share = (at - from) / (to - from);
    look(at - share * length, at + (1 - share) * length);
  };
  const pan = (share) => look(from + (to - from) * share, to + (to - from) * share);

  // ---- what lies here ----

  const tip = document.getElementById('tip');
  const said = document.getElementById('said');

  function wordsFor(code, row) {
    const kind = kindOf(code);
    if (kind === KIND.absent) return row.row === 'moves' || row.row === 'merged' ? 'not of these layers' : WORDS[0];
    if (kind === KIND.many) return WORDS[4];
    return WORDS[kind] + (row.row === 'own' ? '' : ' of [' + (layerOf(code) + 1) + ']');
  }

  // Lines: the layer, where, what, and who the top reads from there.
  function tell(state, pos) {
    const { row, runs } = state;
    const i = find(runs, pos);
    const lines = [row.title || row.label];
    if (i < 0) return [...lines, size(Math.floor(pos)) + ': behind its end'];
    const a = runs.at[i], b = runs.at[i + 1];
    lines.push(hex(a) + ' \u2013 ' + hex(b) + '  (' + size(b - a) + ')', exact(b - a) + ' bytes from ' + exact(a));
    const parts = runs.parts[i];
    const stays = (c) => row.row === 'moves' && layerOf(c) <= range.base;
    if (parts.length === 1) {
      let text = stays(parts[0][0]) ? 'stays as it is' : wordsFor(parts[0][0], row);
      const v = find(view, pos);
      if (row.row === 'own' && kindOf(parts[0][0]) !== KIND.absent && v >= 0 && view.parts[v].length === 1) {
        const winner = view.parts[v][0][0];
        text += layerOf(winner) === row.layer ? ', read from the top' : ', hidden by [' + (layerOf(winner) + 1) + ']';
      }
      if (layers[layerOf(parts[0][0])] && row.row !== 'own' && kindOf(parts[0][0]) !== KIND.absent)
        text += ' ' + layers[layerOf(parts[0][0])].name;
      lines.push(text);
    } else {
      for (const [code, length] of parts)
        lines.push(exact(length) + ' bytes: ' + (stays(code) ? 'stay as they are' : wordsFor(code, row)));
    }
    return lines;
  }

  function showTip(lines, x, y) {
    tip.replaceChildren(...lines.map((line, i) => make('div', i === 0 ? 'name' : '', line)));
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(4, Math.min(x + 14, innerWidth - box.width - 8)) + 'px';
    tip.style.top = Math.max(4, y + 18 + box.height > innerHeight ? y - box.height - 12 : y + 18) + 'px';
  }
  function hideTip() { tip.hidden = true; }

  function setCursor(state, pos) {
    cursor = { pos };
    for (const s of rows) drawCursor(s, s.strip.clientWidth || 800);
    const lines = tell(state, pos);
    said.textContent = lines.join('; ');
    state.strip.setAttribute('aria-valuenow', ((pos - start) / span * 100).toFixed(2));
    state.strip.setAttribute('aria-valuetext', lines.slice(1).join('; '));
    const box = state.strip.getBoundingClientRect();
    showTip(lines, box.left + (pos - from) / (to - from) * box.width, box.bottom - 14);
  }

  const posAt = (strip, x) => {
    const box = strip.getBoundingClientRect();
    return from + (x - box.left) / box.width * (to - from);
  };

  // To the next run of a row, or the one before; what is not in sight comes into it.
  function step(state, direction) {
    const runs = state.runs;
    const pos = cursor ? cursor.pos : from;
    const i = find(runs, pos);
    const next = i < 0 ? (direction > 0 ? 0 : runs.parts.length - 1) : i + direction;
    if (next < 0 || next >= runs.parts.length) return;
    const at = runs.at[next];
    if (at < from || at >= to) look(at - (to - from) / 8, at + (to - from) * 7 / 8);
    asked = false;
    draw();
    setCursor(state, at);
  }

  // ---- hands ----

  function onKey(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (/^(A|SUMMARY|BUTTON|INPUT)$/.test(event.target.tagName) && /^(Enter| )$/.test(event.key)) return;
    const index = event.target.dataset && event.target.dataset.row;
    const state = index === undefined ? null : rows[index];
    const at = state && cursor && cursor.pos >= from && cursor.pos < to ? cursor.pos : undefined;
    const actions = {
      '+': () => zoom(0.5, at), '=': () => zoom(0.5, at), '-': () => zoom(2, at), '0': () => look(start, end),
      Home: () => look(start, start + (to - from)), End: () => look(end - (to - from), end),
      PageUp: () => pan(-0.9), PageDown: () => pan(0.9), Escape: () => { cursor = null; hideTip(); ask(); },
      ArrowLeft: () => state && !event.shiftKey ? step(state, -1) : pan(-0.2),
      ArrowRight: () => state && !event.shiftKey ? step(state, 1) : pan(0.2),
    };
    if (state) {
      actions.ArrowUp = () => { const s = rows[Number(index) - 1]; if (s) { s.strip.focus(); if (cursor) setCursor(s, cursor.pos); } };
      actions.ArrowDown = () => { const s = rows[Number(index) + 1]; if (s) { s.strip.focus(); if (cursor) setCursor(s, cursor.pos); } };
      actions.Enter = () => {
        const i = find(state.runs, cursor ? cursor.pos : from);
        if (i >= 0) { const a = state.runs.at[i], b = state.runs.at[i + 1]; look(a - (b - a) / 2, b + (b - a) / 2); }
      };
    } else {
      delete actions.PageUp; // the page's own
      delete actions.PageDown;
    }
    if (!actions[event.key]) return;
    event.preventDefault();
    actions[event.key]();
  }

  function onStrip(strip, state) {
    let held = null;
    strip.addEventListener('wheel', (event) => {
      event.preventDefault();
      if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) pan((event.deltaX || event.deltaY) / 1000);
      else zoom(Math.pow(1.0022, Math.max(-300, Math.min(300, event.deltaY * (event.deltaMode ? 30 : 1)))), posAt(strip, event.clientX));
    }, { passive: false });
    strip.addEventListener('pointerdown', (event) => {
      if (event.button) return;
      held = { x: event.clientX, from, to };
      strip.setPointerCapture(event.pointerId);
    });
    strip.addEventListener('pointermove', (event) => {
      if (held) {
        const by = (held.x - event.clientX) / strip.getBoundingClientRect().width * (held.to - held.from);
        look(held.from + by, held.to + by);
        return;
      }
      if (!state) return;
      const pos = posAt(strip, event.clientX);
      if (pos >= start && pos < end) showTip(tell(state, pos), event.clientX, event.clientY);
    });
    const release = () => { held = null; };
    strip.addEventListener('pointerup', release);
    strip.addEventListener('pointercancel', release);
    strip.addEventListener('pointerleave', hideTip);
    strip.addEventListener('dblclick', (event) => zoom(0.25, posAt(strip, event.clientX)));
    if (state) strip.addEventListener('click', (event) => setCursor(state, Math.min(end - 1, Math.max(start, Math.floor(posAt(strip, event.clientX))))));
    strip.addEventListener('blur', hideTip);
  }

  function onOverview() {
    let held = false;
    const jump = (event) => {
      const box = overview.getBoundingClientRect();
      const at = start + (event.clientX - box.left) / box.width * span;
      look(at - (to - from) / 2, at + (to - from) / 2);
    };
    overview.addEventListener('pointerdown', (event) => { held = true; overview.setPointerCapture(event.pointerId); jump(event); });
    overview.addEventListener('pointermove', (event) => { if (held) jump(event); });
    overview.addEventListener('pointerup', () => { held = false; });
    overview.addEventListener('pointercancel', () => { held = false; });
  }

  function drawOverview() {
    const paths = new Map(), width = overview.clientWidth || 800;
    const put = (order) => (name, x0, x1, y, height) => {
      const key = order + ' ' + name;
      const d = 'M' + x0.toFixed(1) + ' ' + (y * 16 / HIGH + 3).toFixed(1) + 'H' + Math.max(x1, x0 + 1).toFixed(1) + 'v' +
        (height * 16 / HIGH).toFixed(1) + 'H' + x0.toFixed(1) + 'z';
      paths.set(key, (paths.get(key) || '') + d);
    };
    paints({ row: 'view' }).forEach((paint, order) => paintRuns(view, start, end, width, paint, put(order)));
    overview.replaceChildren(makeSvg('rect', { class: 'track', x: 0.5, y: 3, width: width - 1, height: 16 }),
      ...[...paths.keys()].sort((a, b) => parseInt(a, 10) - parseInt(b, 10))
        .map((key) => makeSvg('path', { class: key.slice(key.indexOf(' ') + 1), d: paths.get(key) })), frame);
  }

  // ---- begin ----

  const home = document.getElementById('charts');
  for (const chart of data.charts) {
    const box = make('section', 'chart');
    if (chart.title) box.append(make('h2', '', chart.title));
    const ruled = make('div', 'row ruled'), ruler = makeSvg('svg', { class: 'ruler', height: 22, 'aria-hidden': 'true' });
    ruled.append(make('div', 'label'), ruler);
    rulers.push(ruler);
    box.append(ruled);
    chart.rows.forEach((row) => makeRow(row, box));
    home.append(box);
  }
  rows.forEach((state) => onStrip(state.strip, state));
  rulers.forEach((ruler) => onStrip(ruler, null));
  onOverview();
  drawOverview();
  document.addEventListener('keydown', onKey);
  document.getElementById('in').addEventListener('click', () => zoom(0.5));
  document.getElementById('out').addEventListener('click', () => zoom(2));
  document.getElementById('all').addEventListener('click', () => look(start, end));
  addEventListener('resize', () => { drawOverview(); ask(); });
  addEventListener('scroll', ask, { passive: true });
  // Paper has another width: what is painted is stretched to that.
  const wide = (svg, width) => {
    if (width) svg.setAttribute('viewBox', '0 0 ' + width + ' ' + svg.getAttribute('height'));
    else svg.removeAttribute('viewBox');
    svg.setAttribute('preserveAspectRatio', 'none');
  };
  const paper = (on) => {
    printing = on;
    draw();
    for (const svg of [...rulers, ...rows.map((state) => state.strip)]) wide(svg, on && svg.clientWidth);
  };
  addEventListener('beforeprint', () => paper(true));
  addEventListener('afterprint', () => paper(false));
  document.body.classList.add('alive');
  if (reduced) document.body.classList.add('calm');
  draw();
})();
