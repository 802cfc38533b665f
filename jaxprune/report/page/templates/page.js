// The slider's tie: whatever the page shows follows K. Names are those of the Python.
const page = JSON.parse(document.getElementById("page-data").textContent);
const charts = {}; // Vega's views, by name
const state = { row: 0, wanted: 0, frame: 0, timer: 0 };
let sweep, now; // that is looked at; what it predicts at the row, and what is drawn of that

const at = (id) => document.getElementById(id);
const all = (selector) => [...document.querySelectorAll(selector)];
const checked = (name) => document.querySelector(`[name=${name}]:checked`).value;
const signed = (x, digits) => (x < 0 ? "−" : "+") + Math.abs(x).toFixed(digits);
const write = (node, text) => { if (node.textContent !== text) node.textContent = text; };
const row_of = (k) => Math.max(0, sweep.ks.findLastIndex((x) => x <= k));
const FORMS = { number: (x) => x.toFixed(4), change: (x) => signed(x, 4), p: (p) => (p >= 0.0001 ? `= ${p.toFixed(4)}` : "< 0.0001") };

function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function line(cells, tag = "td", first = tag) {
  const made = (cell, kind) => element(kind, kind === "td" ? {} : { scope: tag === "td" ? "row" : "col" }, String(cell));
  return element("tr", {}, ...cells.map((cell, i) => made(cell, i ? tag : first)));
}

// Changes lead from one row's predictions to another's, forwards and back.
function move(row) {
  const { labels, changes, class_names } = sweep.detail;
  if (!changes) return; // of another task
  const put = (image, to) => {
    const [from, into] = [now.predicted[image], to].map((c) => labels[image] * class_names.length + c);
    now.confusion.set(from, now.confusion.get(from) - 1);
    now.confusion.set(into, (now.confusion.get(into) ?? 0) + 1);
    now.predicted[image] = to;
  };
  const [begin, end] = [changes.start[now.row], changes.start[row]];
  for (let i = begin; i < end; i++) put(changes.image[i], changes.predicted[i]);
  for (let i = begin - 1; i >= end; i--) put(changes.image[i], changes.before[i]);
  now.row = row;
}

function show_figures(row) {
  const { ks, columns } = sweep;
  for (const node of all("[data-column]")) {
    const column = columns[node.dataset.column];
    write(node, column ? FORMS[node.dataset.form](column[row]) : "–");
  }
  at("k").value = row;
  at("k").ariaValueText = `K = ${ks[row]}, ${page.measure} ${FORMS.number(columns[page.measure][row])}`;
  write(at("k-now"), String(ks[row]));
  page.sweeps.forEach((other, i) => {
    const last = other.ks.findLastIndex((k) => k <= ks[row]);
    write(at("legend").tBodies[0].rows[i].cells[1], last < 0 ? "–" : FORMS.number(other.columns[page.measure][last]));
  });
}

function show_confusion() {
  const { class_names, of_class } = sweep.detail;
  const count = class_names.length;
  if (!now.cells) return show_pairs(count, class_names);
  const paint = (cell, value, text) => {
    if (cell.textContent === text) return;
    cell.textContent = text;
    cell.classList.toggle("less", value < 0);
    cell.style.setProperty("--share", Math.abs(value / 100).toFixed(3));
  };
  for (let pair = 0; pair < count * count; pair++) {
    const of = (of_class[Math.floor(pair / count)] || 1) / 100;
    const share = (now.confusion.get(pair) ?? 0) / of;
    const change = share - (now.first.get(pair) ?? 0) / of;
    paint(now.cells[0][pair], share, share.toFixed(count > 4 ? 0 : 1));
    paint(now.cells[1][pair], change, Math.abs(change) < 0.05 ? "0" : signed(change, 1));
  }
}

function show_pairs(count, class_names) {
  const moved = [...now.confusion].map(([pair, n]) => [pair, now.first.get(pair) ?? 0, n]);
  const change = ([, before, after]) => after - before;
  const most = moved.filter(change).sort((a, b) => Math.abs(change(b)) - Math.abs(change(a)) || a[0] - b[0]);
  at("changed-pairs").tBodies[0].replaceChildren(...most.slice(0, page.pairs).map((row) => {
    const names = [Math.floor(row[0] / count), row[0] % count].map((c) => class_names[c]);
    return line([...names, row[1], row[2], signed(change(row), 0)]);
  }));
}

function show_images(row) {
  const { images, labels, predicted, first, thumbnails, class_names, pool } = sweep.detail;
  const kinds = { lost: [], won: [] };
  for (let i = 0; i < images.length && first[i] <= row; i++) {
    const right = now.predicted[i] === labels[i];
    if (right !== (predicted[i] === labels[i])) kinds[right ? "won" : "lost"].push(i);
  }
  for (const [kind, found] of Object.entries(kinds)) {
    const items = [...at(kind).children];
    const total = found.length.toLocaleString("en");
    write(at(`${kind}-count`), total);
    write(at(`${kind}-shown`), found.length > items.length ? `${items.length} of ${total}` : total);
    show_thumbs(kind, pool, found.slice(0, items.length).map((i) => {
      const [was, is] = [predicted, now.predicted].map((of) => class_names[of[i]]);
      return [images[i], thumbnails[i], was, is, `, first at K = ${sweep.ks[first[i]]}`];
    }));
  }
}

function show_moved(row) {
  const { moved, thumbnails, pool } = sweep.detail;
  for (const kind of ["worse", "better"]) {
    show_thumbs(kind, pool, moved[kind][row].map(([image, before, after]) =>
      [image, thumbnails[image], before.toPrecision(3), after.toPrecision(3)]));
  }
}

// Images in a list of the page, each with its place among the pictures, and before and after.
function show_thumbs(id, pool, found) {
  [...at(id).children].forEach((item, i) => {
    item.hidden = i >= found.length;
    if (item.hidden) return;
    const [image, place, before, after, more] = found[i];
    item.title = `image ${image}${more ?? ""}`;
    write(item.children[1], `${before} → ${after}`);
    put_tile(item.children[0], place ?? -1, page.pools[pool]?.columns, `#${image}`);
  });
}

function put_tile(node, place, columns, missing = "") {
  node.classList.toggle("missing", place < 0);
  write(node, place < 0 ? missing : "");
  node.style.setProperty("--x", place % columns);
  node.style.setProperty("--y", Math.floor(place / columns));
}

function show_maps(k) {
  for (; now.pruned < k; now.pruned++) now.tiles[now.pruned].classList.add("pruned");
  for (; now.pruned > k; now.pruned--) now.tiles[now.pruned - 1].classList.remove("pruned");
}

function show() {
  const row = (state.row = state.wanted);
  state.frame = 0;
  move(row);
  show_figures(row);
  for (const view of Object.values(charts)) view.signal("k", sweep.ks[row]).run();
  show_maps(sweep.ks[row]);
  if (sweep.detail.moved) show_moved(row);
  else {
    show_confusion();
    show_images(row);
    sweep.detail.shares.percent.forEach((shares, i) =>
      write(at("shares").tBodies[0].rows[i].cells[3], `${shares[row].toFixed(1)} %`));
  }
  clearTimeout(state.timer);
  if (location.protocol === "about:") return; // in a notebook
  const address = `#${new URLSearchParams({ k: sweep.ks[row], sweep: sweep.name })}`;
  state.timer = setTimeout(() => history.replaceState(null, "", address), 300);
}

// One drawing for each frame, however many events there are.
function go(row) {
  state.wanted = Math.max(0, Math.min(sweep.ks.length - 1, row));
  state.frame ||= requestAnimationFrame(show);
}

function build_confusion(names) {
  at("matrices").hidden = names.length > page.matrix;
  if (at("matrices").hidden) return; // and the most changed pairs are shown
  const letters = Math.max(...names.map((name) => name.length));
  now.cells = ["confusion", "difference"].map((id) => {
    const rows = names.map((name) => line([name, ...names.map(() => "")], "td", "th"));
    at(id).className = `matrix ${names.length < 5 ? "" : letters > 3 ? "many turned" : "many"}`;
    at(id).style.setProperty("--letters", letters);
    at(id).replaceChildren(line(["", ...names], "th"), ...rows);
    return rows.flatMap((row) => [...row.cells].slice(1));
  });
}

function build_maps({ order, scores, maps }) {
  now.tiles = order.map((channel, rank) => {
    const title = `channel ${channel}, rank ${rank}, score ${scores[channel]}`;
    const tile = element("span", { class: "tile", role: "listitem", title, "data-channel": channel });
    put_tile(tile, channel, page.maps[maps].columns);
    return tile;
  });
  now.by_index = now.tiles.toSorted((a, b) => a.dataset.channel - b.dataset.channel);
}

function arrange() {
  at("maps").replaceChildren(...(checked("sort") === "rank" ? now.tiles : now.by_index));
  document.querySelector("main").className = `maps${sweep.detail.maps} ${checked("scale")}`;
  document.querySelector("[aria-labelledby=h-images]").className = `pool${sweep.detail.pool}`;
}

function build_shares({ names, truth, percent }) {
  at("shares").tBodies[0].replaceChildren(...names.map((name, i) => {
    const row = line([name, ...[truth[i], percent[i][0], 0].map((x) => `${x.toFixed(1)} %`)], "td", "th");
    row.cells[0].prepend(element("span", { class: "swatch", style: `background: var(--class${i})` }));
    return row;
  }));
  const of_class = (shares, i) => shares.map((share, row) => ({ k: sweep.ks[row], class: i, share }));
  charts.shares.data("rows", percent.flatMap(of_class));
}

function build_table(details) {
  const { ks, columns, detail } = sweep;
  const tables = {
    figures: () => [["k", ...Object.keys(columns)], ...ks.map((k, i) => [k, ...Object.values(columns).map((x) => x[i])])],
    channels: () => [["rank", "channel", "score"], ...detail.order.map((c, rank) => [rank, c, detail.scores[c]])],
  };
  const [head, ...rows] = tables[details.dataset.table]();
  details.lastElementChild.replaceChildren(element("table", {}, line(head, "th"), ...rows.map((row) => line(row))));
}

function choose(index, k) {
  sweep = page.sweeps[index];
  const { detail } = sweep;
  const [first, confusion] = [new Map(detail.confusion), new Map(detail.confusion)];
  now = { row: 0, pruned: 0, first, confusion, predicted: [...(detail.predicted ?? [])] };
  if (at("sweep")) at("sweep").value = index;
  for (const node of all("[data-sweep]")) node.hidden = Number(node.dataset.sweep) !== index;
  for (const node of all("[data-text]")) write(node, sweep.texts[node.dataset.text]);
  at("k").max = sweep.ks.length - 1;
  build_maps(detail);
  if (!detail.moved) {
    build_confusion(detail.class_names);
    build_shares(detail.shares);
  }
  arrange();
  all("details[open]").forEach(build_table);
  for (const view of Object.values(charts)) view.signal("main", sweep.name);
  state.wanted = row_of(k);
  show();
}

function open_address() {
  const address = new URLSearchParams(location.hash.slice(1));
  const index = Math.max(page.sweeps.findIndex(({ name, detail }) => detail && name === address.get("sweep")), 0);
  const k = Number(address.get("k") ?? page.sweeps[index].largest_safe_k);
  if (sweep === page.sweeps[index]) go(row_of(k));
  else choose(index, k);
}

function press(event) {
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowDown: -1, ArrowUp: 1, PageDown: -16, PageUp: 16 };
  const free = ["ArrowLeft", "ArrowRight"].includes(event.key) && !event.target.closest("input, select, [tabindex]");
  if (!steps[event.key] || event.ctrlKey || event.altKey || !(free || event.target === at("k"))) return;
  event.preventDefault();
  go(state.wanted + steps[event.key]);
}

function hide() {
  const hidden = all("#legend input:not(:checked)").map((box) => page.sweeps[box.value].name);
  for (const name of Object.keys(charts)) if (name !== "shares") charts[name].signal("hidden", hidden).run();
}

// The whole network's slider: 0 is the network as it was, then budgets.
function show_budget(row) {
  const { rows, widths, moved, thumbnails, pool, worse } = page.budgets;
  const { name, score, largest_drop, agreement, least_agreement, speedups } = rows[row];
  const show = (id, text) => { if (at(`budget-${id}`)) write(at(`budget-${id}`), text); };
  at("budget").value = row;
  at("budget").ariaValueText = name;
  show("now", name);
  show("score", FORMS.number(score));
  show("drop", row ? `at most ${FORMS.number(largest_drop)} ${worse}, with 95 % confidence` : "");
  show("agreement", FORMS.number(agreement ?? 0));
  show("least", row ? `at least ${FORMS.number(least_agreement ?? 0)}, with 95 % confidence` : "");
  for (const size of ["multiply_adds", "parameters"]) {
    const [now, before] = rows[row][size];
    show(size, `÷ ${(before / now).toFixed(2)}`);
    show(`${size}-of`, `${now.toLocaleString("en")} of ${before.toLocaleString("en")}`);
  }
  const batches = Object.entries(speedups);
  show("speedup", `× ${batches.at(-1)[1].toFixed(2)}`);
  show("batches", batches.map(([batch, times]) => `${times.toFixed(2)} at batch ${batch}`).join(", "));
  widths.forEach(({ of_row }, i) => {
    const [, track, numbers] = at("widths").children[i].children;
    track.firstChild.style.setProperty("--share", of_row[row] / of_row[0]);
    write(numbers, row ? `${of_row[0]} → ${of_row[row]}` : String(of_row[0]));
  });
  for (const [kind, of_row] of Object.entries(moved)) {
    const { count, images } = of_row[row];
    show(`${kind}-count`, count.toLocaleString("en"));
    show_thumbs(`budget-${kind}`, pool, images.map(([image, ...words]) => [image, thumbnails[image], ...words]));
  }
  [...at("ladder").tBodies[0].rows].forEach((tr, i) => tr.ariaCurrent = String(i + 1 === row));
}

function open_budgets() {
  at("budget").oninput = (event) => show_budget(Number(event.target.value));
  [...at("ladder").tBodies[0].rows].forEach((tr, i) => { tr.onclick = () => show_budget(i + 1); });
  show_budget(page.budgets.rows.length - 1);
}

async function open_sweeps() {
  for (const [name, spec] of Object.entries(page.charts)) {
    const datasets = { rows: name === "shares" ? [] : page.sweeps.map(({ detail, ...curve }) => curve) };
    const { view } = await vegaEmbed(at(`chart-${name}`), { ...spec, datasets }, page.embed);
    charts[name] = view;
    view.addEventListener("click", ({ offsetX }) => go(row_of(view.scale("x").invert(offsetX - view.origin()[0]))));
  }
  open_address();
  window.onhashchange = open_address;
  document.onkeydown = press;
  at("k").oninput = (event) => go(Number(event.target.value));
  if (at("sweep")) at("sweep").onchange = (event) => choose(Number(event.target.value), sweep.ks[state.row]);
  for (const button of all("[data-k]")) button.onclick = () => go(row_of(Number(button.dataset.k)));
  for (const radio of all("[type=radio]")) radio.onchange = arrange;
  for (const details of all("details")) details.ontoggle = () => details.open && build_table(details);
  for (const box of all("#legend input")) box.onchange = hide;
}

if (page.budgets) open_budgets();
if (page.sweeps.length) await open_sweeps();
document.body.dataset.ready = performance.now(); // milliseconds to open
