"use strict";
(() => {
  const { switches, figures, looks } = JSON.parse(document.getElementById("data").textContent);
  const { colours: COLOURS, dashes: DASHES, marks: MARKS } = looks;
  const DIGITS = 4;
  const off = Object.fromEntries(switches.map((s) => [s.axis, new Set()]));
  const byId = new Map(figures.map((f) => [f.id, f]));
  const views = new Map();
  const all = (what, inside = document) => [...inside.querySelectorAll(what)];
  const isOff = (axis, place) => off[axis] !== undefined && off[axis].has(place);

  // ---- what is on

  function seriesOn(figure) {
    const names = switches.find((s) => s.axis === figure.axis)?.values;
    return (name) => names === undefined || !isOff(figure.axis, names.indexOf(name));
  }

  function keysOn(figure) {
    return Object.entries(figure.keys ?? {}).every(([axis, place]) => !isOff(axis, place));
  }

  /** The mean over figures that are on, and its standard deviation, from their n, means and standard deviations. */
  function averaged(figure) {
    const of = figure.of.map((id) => byId.get(id)).filter(keysOn);
    if (!of.length) return { ...figure, series: [], x: [], v: [] };
    const { series, looks, x } = of[0];
    const made = { v: [], low: [], high: [], n: [] };
    series.forEach((name, s) => {
      for (const part of Object.values(made)) part.push([]);
      x.forEach((_, i) => {
        let n = 0, sum = 0;
        const there = of.filter((f) => f.v[s]?.[i] != null && f.x[i] === x[i]);
        for (const f of there) { n += countOf(f, s, i); sum += countOf(f, s, i) * f.v[s][i]; }
        const mean = n ? sum / n : null;
        let squares = 0;
        for (const f of there) squares += (countOf(f, s, i) - 1) * (f.sd?.[s]?.[i] ?? 0) ** 2 + countOf(f, s, i) * (f.v[s][i] - mean) ** 2;
        const sd = n > 1 ? Math.sqrt(squares / (n - 1)) : null;
        made.v[s].push(mean);
        made.low[s].push(sd === null ? null : mean - sd);
        made.high[s].push(sd === null ? null : mean + sd);
        made.n[s].push(n);
      });
    });
    return { ...figure, series, looks, x, ...made };
  }

  // ---- figures: rows with fixed names of fields, so that no name that came from elsewhere is ever read as code

  function tip(lines) { return lines.filter((line) => line !== null).join("\n"); }
  function shown(value) { return value === null ? "–" : String(Number(value.toPrecision(DIGITS))); }

  const countOf = (figure, s, i) => (typeof figure.n === "number" ? figure.n : figure.n?.[s]?.[i] ?? 0);

  /** The edge of a band: as given, else a standard deviation away where there are several. */
  function edge(figure, given, sign, s, i) {
    if (given) return given[s]?.[i] ?? null;
    const sd = figure.sd?.[s]?.[i] ?? null;
    return sd === null || countOf(figure, s, i) < 2 ? null : figure.v[s][i] + sign * sd;
  }

  function linesRows(given) {
    const figure = given.of ? averaged(given) : given;
    const on = seriesOn(figure), rows = [], every = Math.max(1, Math.ceil(figure.x.length / 8));
    figure.series.forEach((name, s) => {
      if (!on(name)) return;
      figure.x.forEach((x, i) => {
        const v = figure.v[s][i], low = edge(figure, figure.low, -1, s, i), high = edge(figure, figure.high, 1, s, i);
        const band = low === null ? null : `${shown(low)} … ${shown(high)}`;
        const n = figure.of ? `mean of ${figure.n[s][i]}` : null;
        rows.push({ x, i, s: name, v, low, high, mark: (i + s) % every === 0, tip: tip([name, `${figure.labels[0]}: ${x}`, shown(v), band, n]) });
      });
    });
    return rows;
  }

  function scales(figure) {
    const source = figure.of ? byId.get(figure.of[0]) : figure;
    const domain = source?.series ?? [], looks = source?.looks ?? [];
    const of = (list) => ({ domain, range: looks.map((i) => list[i]) });
    const colour = { field: "s", type: "nominal", legend: null, scale: of(COLOURS) };
    return {
      color: colour,
      strokeDash: { field: "s", type: "nominal", legend: null, scale: of(DASHES) },
      shape: { field: "s", type: "nominal", legend: null, scale: of(MARKS) },
    };
  }

  /** As many names below an axis as there is room for, evenly, with all of the last one. */
  function ticks(figure, names) {
    const room = Math.max(3, (document.getElementById(`f${figure.id}`).clientWidth - 60) / (11 + 7 * Math.max(1, ...names.map((n) => Math.min(n.length, 14)))));
    const every = Math.ceil(names.length / room);
    return { values: names.filter((_, i) => i % every === 0), labelAngle: 0, labelLimit: 100, labelOverlap: true };
  }

  function linesSpec(figure) {
    const { color, strokeDash, shape } = scales(figure);
    const [xLabel, yLabel] = figure.labels ?? ["", ""];
    const source = figure.of ? byId.get(figure.of[0]) : figure;
    const x = { field: "x", type: "ordinal", sort: null, title: xLabel, scale: { type: "point", padding: 0.3, domain: source?.x ?? [] }, axis: { ...ticks(figure, source?.x ?? []), grid: false } };
    const y = { field: "v", type: "quantitative", title: yLabel, scale: { zero: false, nice: true }, axis: { tickCount: 6 } };
    const band = { mark: { type: "area", opacity: 0.16, line: false }, transform: [{ filter: "isValid(datum.low)" }], encoding: { x, y: { ...y, field: "low" }, y2: { field: "high" }, color } };
    const rules = figure.whole ? [0, 1].map((at) => ({ mark: { type: "rule", strokeDash: at ? [1, 0] : [3, 3], opacity: 0.55, color: "currentColor" }, data: { values: [{}] }, encoding: { y: { datum: at, type: "quantitative" } } })) : [];
    const points = { mark: { type: "point", filled: true, size: 42, opacity: 1 }, transform: [{ filter: "datum.mark" }], encoding: { x, y, color, shape } };
    const hover = {
      mark: { type: "point", size: 90, strokeWidth: 2, tooltip: true },
      params: [{ name: "near", select: { type: "point", on: "pointerover", clear: "pointerout", nearest: true, fields: ["i", "s"] } }],
      encoding: { x, y, color, tooltip: { field: "tip" }, opacity: { condition: { param: "near", empty: false, value: 1 }, value: 0 } },
    };
    const bands = figure.of || figure.low || figure.sd ? [band] : [];
    return { height: 230, layer: [...rules, ...bands, { mark: { type: "line", strokeWidth: 2 }, encoding: { x, y, color, strokeDash } }, points, hover] };
  }

  function mapRows(figure) {
    const rows = [];
    figure.y.forEach((y, j) => figure.x.forEach((x, i) => {
      const v = figure.v[j][i];
      if (v !== null) rows.push({ x, y, v, tip: tip([`${figure.labels[1]}: ${y}`, `${figure.labels[0]}: ${x}`, `${figure.labels[2]}: ${shown(v)}`]) });
    }));
    return rows;
  }

  function mapSpec(figure) {
    const [xTitle, yTitle, title] = figure.labels;
    const scale = { domain: figure.ends, clamp: true, scheme: figure.middle === null ? "viridis" : "blueorange", ...(figure.middle === null ? {} : { domainMid: figure.middle }) };
    return {
      height: Math.round(figure.y.length * Math.max(14, Math.min(26, 320 / figure.y.length))),
      mark: { type: "rect", tooltip: true },
      encoding: {
        x: { field: "x", type: "ordinal", sort: null, title: xTitle, scale: { domain: figure.x }, axis: ticks(figure, figure.x) },
        y: { field: "y", type: "ordinal", sort: null, title: yTitle || null, scale: { domain: figure.y }, axis: { labelLimit: 130, labelOverlap: "greedy" } },
        color: { field: "v", type: "quantitative", title, scale, legend: { orient: "top", gradientLength: 160, gradientThickness: 10 } },
        tooltip: { field: "tip" },
      },
    };
  }

  function pointsRows(figure) {
    const on = seriesOn(figure);
    return figure.rows.filter(([s]) => on(figure.series[s])).map(([s, name, x, y], i) => ({
      s: figure.series[s], name, x, y, i,
      tip: tip([figure.series[s], name, `${figure.labels[0]}: ${shown(x)}`, `${figure.labels[1]}: ${shown(y)}`]),
    }));
  }

  function pointsSpec(figure) {
    const { color, strokeDash, shape } = scales(figure);
    const scale = { domain: [-3, 105] };
    const x = { field: "x", type: "quantitative", title: figure.labels[0], scale }, y = { field: "y", type: "quantitative", title: figure.labels[1], scale };
    const rule = (channel, at) => ({ mark: { type: "rule", strokeDash: [2, 3], color: "currentColor", opacity: 0.7 }, data: { values: [{}] }, encoding: { [channel]: { datum: at, type: "quantitative" } } });
    return {
      height: 320,
      layer: [
        ...(figure.limits[0] === null ? [] : [rule("x", figure.limits[0])]), ...(figure.limits[1] === null ? [] : [rule("y", figure.limits[1])]),
        { mark: { type: "line", opacity: 0.6, strokeWidth: 1 }, encoding: { x, y, color, strokeDash, order: { field: "i", type: "quantitative" } } },
        { mark: { type: "point", filled: true, size: 90, opacity: 1, tooltip: true }, encoding: { x, y, color, shape, tooltip: { field: "tip" } } },
      ],
    };
  }

  function intervalsRows(figure) {
    return figure.rows.map(([name, mean, low, high]) => ({ name, mean, low, high, tip: tip([name, shown(mean), low === null ? null : `${shown(low)} … ${shown(high)}`]) }));
  }

  function intervalsSpec(figure) {
    const y = { field: "name", type: "ordinal", sort: null, title: null, axis: { labelLimit: 130 } };
    const scale = { domain: [-0.35, 1.35], clamp: true };
    const [none, whole] = figure.labels;
    const axis = { values: [0, 0.5, 1], labelExpr: "datum.value == 0 ? none : datum.value == 1 ? whole : ''" };
    const x = (field) => ({ field, type: "quantitative", title: null, scale, axis });
    const rule = (at) => ({ mark: { type: "rule", strokeDash: at ? [1, 0] : [3, 3], color: "currentColor", opacity: 0.6 }, data: { values: [{}] }, encoding: { x: { datum: at, type: "quantitative" } } });
    return {
      height: 24 * figure.rows.length, params: [{ name: "none", value: none }, { name: "whole", value: whole }],
      layer: [rule(0), rule(1),
        { mark: { type: "rule", strokeWidth: 2, color: COLOURS[0] }, transform: [{ filter: "isValid(datum.low)" }], encoding: { y, x: x("low"), x2: { field: "high" }, tooltip: { field: "tip" } } },
        { mark: { type: "point", filled: true, size: 80, color: COLOURS[0], opacity: 1, tooltip: true }, encoding: { y, x: x("mean"), tooltip: { field: "tip" } } }],
    };
  }

  const KINDS = {
    lines: [linesRows, linesSpec], map: [mapRows, mapSpec], points: [pointsRows, pointsSpec], intervals: [intervalsRows, intervalsSpec],
  };
  const CONFIG = {
    background: "transparent", font: "system-ui, sans-serif", view: { stroke: null }, aria: false,
    axis: { labelColor: "currentColor", titleColor: "currentColor", domainColor: "currentColor", tickColor: "currentColor", gridColor: "currentColor", gridOpacity: 0.13, titleFontWeight: "normal", labelFontSize: 11, titleFontSize: 12 },
    legend: { labelColor: "currentColor", titleColor: "currentColor", titleFontWeight: "normal", titleLimit: 300 },
  };

  const OPTIONS = { logLevel: 1, mode: "vega-lite", renderer: "svg", actions: false, defaultStyle: false, tooltip: (_, event, item, value) => showTip(event, value == null ? null : item?.datum?.tip ?? item?.datum?.datum?.tip) };

  function draw(figure) {
    const place = document.getElementById(`f${figure.id}`);
    const [rows, spec] = KINDS[figure.kind];
    const found = rows(figure);
    let drawing = views.get(figure.id);
    if (drawing === undefined) {
      const inner = document.createElement("div"), empty = document.createElement("p");
      empty.className = "empty"; empty.textContent = "Nothing of this is switched on.";
      place.append(inner, empty);
      const whole = { ...spec(figure), width: "container", data: { name: "rows", values: found }, config: CONFIG };
      drawing = { inner, empty, made: vegaEmbed(inner, whole, OPTIONS).then(({ view }) => view) };
      views.set(figure.id, drawing);
    } else if (found.length) drawing.made.then((view) => view.data("rows", found).runAsync());
    drawing.inner.style.visibility = found.length ? "visible" : "hidden";
    drawing.empty.hidden = found.length > 0;
    return drawing.made;
  }

  const tipBox = document.createElement("div");
  tipBox.className = "tip"; tipBox.hidden = true; tipBox.setAttribute("aria-hidden", "true");
  document.body.append(tipBox);
  function showTip(event, value) {
    if (value == null || value === "") { tipBox.hidden = true; return; }
    tipBox.textContent = value;
    tipBox.hidden = false;
    const { width, height } = tipBox.getBoundingClientRect();
    tipBox.style.left = `${Math.max(4, Math.min(event.clientX + 12, innerWidth - width - 4))}px`;
    tipBox.style.top = `${event.clientY + 16 + height > innerHeight ? event.clientY - height - 12 : event.clientY + 16}px`;
  }
  addEventListener("scroll", () => { tipBox.hidden = true; }, { passive: true });

  const waiting = new Set(figures.map((f) => f.id));
  function drawNow(id) { waiting.delete(id); return draw(byId.get(id)); }
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const id = Number(entry.target.id.slice(1));
      if (entry.isIntersecting && waiting.has(id)) { watcher.unobserve(entry.target); drawNow(id); }
    }
  }, { rootMargin: "400px" });
  for (const id of waiting) watcher.observe(document.getElementById(`f${id}`));

  // ---- switches

  const AXES = switches.map((s) => s.axis);
  function apply() {
    for (const axis of AXES) {
      for (const element of all(`[data-${axis}]`)) {
        element.hidden = AXES.some((a) => element.hasAttribute(`data-${a}`) && isOff(a, Number(element.getAttribute(`data-${a}`))));
      }
    }
    for (const table of all("table")) {  // a column goes with its head
      const heads = all("thead th", table);
      if (!heads.some((head) => AXES.some((a) => head.hasAttribute(`data-${a}`)))) continue;
      for (const row of table.tBodies[0].rows) heads.forEach((head, i) => { if (AXES.some((a) => head.hasAttribute(`data-${a}`))) row.cells[i].hidden = head.hidden; });
    }
    for (const id of views.keys()) draw(byId.get(id));
    const told = switches.filter((s) => s.values.length > 1).map((s) => `${s.label}: ${s.values.length - off[s.axis].size} of ${s.values.length}`);
    const line = document.getElementById("shown");
    if (line) line.textContent = told.join("; ");
  }
  document.addEventListener("change", ({ target }) => {
    const axis = target.dataset?.switch;
    if (axis === undefined) return;
    off[axis][target.checked ? "delete" : "add"](Number(target.value));
    apply();
  });
  function setAll(axis, on) {
    for (const box of all(`input[data-switch="${axis}"]`)) {
      box.checked = on;
      off[axis][on ? "delete" : "add"](Number(box.value));
    }
    apply();
  }

  // ---- copies

  const said = document.createElement("p");
  said.className = "said"; said.setAttribute("role", "status");
  document.body.append(said);
  let later;
  function say(text) { said.textContent = text; clearTimeout(later); later = setTimeout(() => { said.textContent = ""; }, 2500); }

  function cellsOf(table) {
    return [...table.rows].filter((row) => !row.hidden).map((row) => [...row.cells].filter((cell) => !cell.hidden).map((cell) => cell.textContent));
  }
  const csvCell = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const asCsv = (rows) => rows.map((row) => row.map((text) => csvCell(text === "–" ? "" : text)).join(",")).join("\n") + "\n";
  const LATEX = { "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}" };
  function latexCell(text) {
    if (text === "–") return "--";
    if (/^-[\d.]/.test(text)) return `$-$${text.slice(1)}`;
    return text.replace(/\s+/g, " ").replace(/[\\~^&%$#_{}]/g, (c) => LATEX[c] ?? `\\${c}`);
  }
  function asLatex(rows, caption, numeric) {
    const line = (row) => `${row.map(latexCell).join(" & ")} \\\\`;
    return [
      "\\begin{table}", `\\caption{${latexCell(caption)}}`, `\\begin{tabular}{${numeric.map((n) => (n ? "r" : "l")).join("")}}`, "\\toprule",
      line(rows[0]), "\\midrule", ...rows.slice(1).map(line), "\\bottomrule", "\\end{tabular}", "\\end{table}", "",
    ].join("\n");
  }
  function textOf(button) {
    const table = button.closest(".table").querySelector("table"), rows = cellsOf(table);
    if (button.dataset.copy === "csv") return asCsv(rows);
    const first = [...table.tBodies[0].rows].find((row) => !row.hidden);
    const numeric = first ? [...first.cells].filter((c) => !c.hidden).map((c) => c.tagName === "TD" && !c.classList.contains("t")) : rows[0].map(() => false);
    const about = table.dataset.about;
    return asLatex(rows, about ? `${table.caption.textContent}; ${about}` : table.caption.textContent, numeric);
  }
  function copiedByHand(text) {
    const area = document.createElement("textarea");
    area.value = text; area.setAttribute("readonly", ""); area.style.position = "fixed"; area.style.opacity = "0";
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
  async function copy(button) {
    const text = textOf(button);
    let done = false;
    try { await navigator.clipboard.writeText(text); done = true; } catch { done = copiedByHand(text); }
    button.focus();
    say(done ? "Copied." : "The browser does not let pages copy: select the table by hand.");
  }

  async function save(id) {
    if (waiting.has(id)) drawNow(id);
    const view = await views.get(id).made;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([await view.toSVG()], { type: "image/svg+xml" }));
    link.download = `figure-${id + 1}.svg`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  document.addEventListener("click", ({ target }) => {
    const button = target.closest?.("button");
    if (!button) return;
    const { all: axis, copy: kind, save: id } = button.dataset;
    if (axis !== undefined) setAll(axis, button.value === "1");
    else if (kind !== undefined) copy(button);
    else if (id !== undefined) save(Number(id));
  });

  // ---- on paper everything is unfolded and drawn

  let folded = [];
  addEventListener("beforeprint", () => {
    folded = all("details:not([open])");
    for (const one of folded) one.open = true;
    for (const id of [...waiting]) drawNow(id);
  });
  addEventListener("afterprint", () => { for (const one of folded) one.open = false; });
  if (innerWidth < 640) for (const one of all(".switches")) one.open = false;
  apply();
})();
