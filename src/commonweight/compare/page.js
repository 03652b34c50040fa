"use strict";
(() => {
  const results = JSON.parse(document.getElementById("results").textContent);
  const share = results.metric === "accuracy", all = "mean of tasks";
  const metric = share ? "accuracy, %" : results.metric === "bits_per_byte" ? "bits per byte" : results.metric;
  const scale = share ? 100 : 1, digits = share ? 2 : 4;
  const colours = ["#1f9d8b", "#d2691e", "#6f63c8", "#c23b6b", "#3f84c6", "#8a9a1f", "#a0643c", "#2f9e44", "#b455b0",
    "#c79a12", "#64788c", "#e0563b"];
  const symbols = ["circle", "square", "diamond", "triangle-up", "triangle-down"];
  const paths = ["M6 1a5 5 0 1 0 .01 0z", "M1.5 1.5h9v9h-9z", "M6 0l6 6-6 6-6-6z", "M6 1l5.5 10H.5z", "M6 11L.5 1h11z"];
  const methods = [...new Set(results.points.map(p => p.method))];
  const look = Object.fromEntries(methods.map((m, i) =>
    [m, { colour: colours[i % colours.length], shape: Math.floor(i / colours.length) % symbols.length }]));
  const hidden = new Set();
  const $ = id => document.getElementById(id);
  const el = (tag, props = {}, ...inside) => {
    const e = Object.assign(document.createElement(tag), props);
    e.append(...inside);
    return e;
  };
  const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const bytes = n => n >= 1e6 ? `${+(n / 1e6).toPrecision(3)} MB` : n >= 1e3 ? `${+(n / 1e3).toPrecision(3)} kB` : `${n} B`;
  const value = (p, task) => p.values[task];
  const plain = { displayModeBar: false, responsive: true };
  let chosen = null;

  const shown = () => {
    const words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    return results.points.filter(p => !hidden.has(p.method) && (!$("front").checked || p.front)
      && words.every(w => p.name.toLowerCase().includes(w)));
  };

  const layout = extra => {
    const axis = { gridcolor: css("--rule"), linecolor: css("--soft"), zeroline: false, automargin: true,
      title: { standoff: 12 } };
    return { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest", showlegend: false,
      font: { family: "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif", size: 13.5,
        color: css("--ink") },
      hoverlabel: { bgcolor: css("--ink"), font: { color: css("--back") }, align: "left" },
      margin: { l: 56, r: 16, t: 16, b: 48 }, ...extra,
      xaxis: { ...axis, ...extra.xaxis }, yaxis: { ...axis, ...extra.yaxis },
      ...(extra.yaxis2 && { yaxis2: { ...axis, ...extra.yaxis2 } }) };
  };

  // The front over the points that are shown, on the task that is shown.
  const front = points => {
    const better = (a, b) => results.more ? a > b : a < b;
    let best = null;
    const out = [];
    for (const p of [...points].sort((a, b) => a.x - b.x || (better(a.y, b.y) ? -1 : 1))) {
      if (best === null || better(p.y, best)) { out.push(p); best = p.y; }
    }
    return out;
  };

  // A config without bytes of its own has no place on a logarithmic axis: it stands at the left edge.
  const places = (points, task) => {
    const sizes = points.map(p => p.bytes).filter(b => b > 0);
    const least = sizes.length ? Math.min(...sizes) / 2 : 1;
    return points.filter(p => value(p, task)).map(p => ({ p, x: p.bytes || least, y: scale * value(p, task).mean }));
  };

  const draw = () => {
    const task = $("task").value, points = shown();
    const at = places(points, task);
    const traces = methods.map(m => {
      const mine = at.filter(a => a.p.method === m).sort((a, b) => a.x - b.x);
      return { name: m, type: "scatter", mode: "lines+markers", x: mine.map(a => a.x), y: mine.map(a => a.y),
        customdata: mine.map(a => results.points.indexOf(a.p)),
        text: mine.map(a => `<b>${a.p.name}</b><br>${bytes(a.p.bytes)}` +
          (a.p.marginal_bytes !== a.p.bytes ? ` (${bytes(a.p.marginal_bytes)} marginal${
            a.p.marginal_bytes ? "" : ": its seed and its head alone"})` : "") +
          `<br>${a.y.toFixed(digits)}` + (value(a.p, task).half === null ? "" :
            ` ± ${(scale * value(a.p, task).half).toFixed(digits)}`) + ` ${metric}`),
        hovertemplate: "%{text}<extra></extra>",
        error_y: { type: "data", array: mine.map(a => scale * (value(a.p, task).half ?? 0)), thickness: 1.2, width: 3 },
        line: { width: 1, color: look[m].colour },
        marker: { size: mine.map(a => a.p === chosen ? 15 : 9.5), color: look[m].colour, symbol: symbols[look[m].shape],
          line: { width: mine.map(a => a.p === chosen ? 2.5 : 0), color: css("--ink") } } };
    }).filter(t => t.x.length);
    const edge = front(at);
    if (edge.length > 1) {
      traces.unshift({ type: "scatter", mode: "lines", x: edge.map(a => a.x), y: edge.map(a => a.y), hoverinfo: "skip",
        line: { shape: "hv", dash: "dash", width: 1.6, color: css("--soft") } });
    }
    const narrow = $("plot").clientWidth < 560;
    // The axis follows the means; long bars are cut rather than pressing the points together.
    const ys = at.map(a => a.y), low = Math.min(...ys), high = Math.max(...ys);
    const bars = at.map(a => scale * (value(a.p, task).half ?? 0)).sort((a, b) => a - b);
    const room = Math.max(0.15 * (high - low), bars.length ? bars[Math.floor(bars.length / 2)] : 0, share ? 0.5 : 0.005);
    const sized = at.filter(a => a.p.bytes).map(a => a.x), without = at.find(a => !a.p.bytes);
    const ticks = (sized.length ? powers(Math.min(...sized), Math.max(...sized), narrow) : [])
      .filter(t => !without || t > 1.8 * without.x);
    const labels = ticks.map(bytes);
    if (without) { ticks.unshift(without.x); labels.unshift("0 B"); }
    Plotly.react("plot", traces, layout({
      margin: { l: narrow ? 44 : 56, r: narrow ? 8 : 16, t: 12, b: 48 },
      xaxis: { type: "log", title: { text: narrow ? "bytes of the saved pools" : "bytes of the saved pools, without the head" }, tickmode: "array",
        tickvals: ticks, ticktext: labels, tickangle: 0 },
      yaxis: { title: { text: metric }, range: at.length ? [low - room, high + room] : undefined } }), plain);
  };

  const powers = (low, high, narrow) => {
    const out = [], decades = Math.log10(high / low);
    const steps = decades < 1.5 ? [1, 2, 5] : decades < 3 && !narrow ? [1, 3] : [1];
    for (let k = Math.floor(Math.log10(low)); k <= Math.ceil(Math.log10(high)); k++) {
      for (const m of steps) out.push(m * 10 ** k);
    }
    return out;
  };

  const order = { column: null, down: false };
  const keys = [p => p.name, p => p.bytes, p => p.marginal_bytes, p => p.parameters, p => value(p, all)?.mean,
    p => value(p, all)?.half, p => value(p, all)?.rows, p => p.difference?.mean, p => p.peak_memory,
    p => p.seconds_per_step, p => p.front ? 1 : 0];

  const list = () => {
    const points = shown(), body = $("table").tBodies[0];
    const by = order.column === null ? keys[4] : keys[order.column];
    const sign = order.column === null ? (results.more ? -1 : 1) : order.down ? -1 : 1;
    points.sort((a, b) => {
      const x = by(a), y = by(b);
      if (x == null || y == null) return (x == null) - (y == null);
      return sign * (typeof x === "string" ? x.localeCompare(y) : x - y);
    });
    body.replaceChildren(...points.map(p => {
      const name = el("button", { type: "button", textContent: p.cells[0], onclick: () => choose(p, true) });
      const row = el("tr", { className: (p.front ? "front " : "") + (p === chosen ? "on" : "") }, el("td", {}, name));
      row.append(...p.cells.slice(1).map(text => el("td", { className: "n", textContent: text })));
      return row;
    }));
    $("count").textContent = `${points.length} of ${results.points.length} configs`;
  };

  document.querySelectorAll("#table th button").forEach((button, i) => {
    button.addEventListener("click", e => {
      e.stopImmediatePropagation();
      order.down = order.column === i ? !order.down : i > 0;
      order.column = i;
      document.querySelectorAll("#table th").forEach(th => th.removeAttribute("aria-sort"));
      button.parentElement.setAttribute("aria-sort", order.down ? "descending" : "ascending");
      list();
    }, true);
  });

  const choose = (p, scroll) => {
    chosen = p;
    detail();
    draw();
    list();
    if (scroll) { $("detail").scrollIntoView({ block: "nearest" }); $("detail").focus({ preventScroll: true }); }
  };

  const detail = () => {
    const p = chosen, box = $("detail");
    if (!p) return;
    const task = $("task").value;
    const runs = p.runs.filter(r => task === all || r.task === task);
    const rates = Object.entries(p.lr).map(([t, lr]) => `${t} ${(+lr).toPrecision(2)}`).join(", ");
    const tried = Object.values(p.trials).reduce((n, t) => n + t.length, 0);
    const facts = [`${p.bytes.toLocaleString("en")} bytes, head ${p.head_bytes.toLocaleString("en")} more`,
      `${p.parameters.toLocaleString("en")} trained parameters`, `learning rate: ${rates}`];
    if (tried) facts.push(`${tried} trials`);
    box.replaceChildren(el("h3", { textContent: p.name }), el("p", { className: "note", textContent: facts.join("; ") }),
      el("div", { className: "legend" }), el("div", { id: "curve" }), el("ol", {}, ...runs.map(run)));
    const tasks = [...new Set(runs.map(r => r.task))];
    const measured = runs.some(r => r.curve.some(c => `dev_${results.metric}` in c));
    box.querySelector(".legend").append(...tasks.map((t, i) => key("swatch", t, colours[i % colours.length])),
      key("solid", "loss of the training rows, left axis"),
      ...(measured ? [key("dots", `${metric} on the dev rows, right axis`)] : []), key("", "one line per seed"));
    const traces = runs.flatMap(r => {
      const dev = r.curve.filter(c => `dev_${results.metric}` in c);
      const label = `${r.task}, seed ${r.seed}`, colour = colours[tasks.indexOf(r.task) % colours.length];
      return [
        { type: "scatter", mode: "lines", x: r.curve.map(c => c.step), y: r.curve.map(c => c.loss), name: label,
          line: { width: 1.3, color: colour }, hovertemplate: `${label}<br>step %{x}: loss %{y:.3f}<extra></extra>` },
        { type: "scatter", mode: "lines+markers", x: dev.map(c => c.step), yaxis: "y2", name: label,
          y: dev.map(c => scale * c[`dev_${results.metric}`]), marker: { size: 7, color: colour },
          line: { width: 1, dash: "dot", color: colour },
          hovertemplate: `${label}<br>step %{x}: dev %{y:.2f}<extra></extra>` }];
    });
    Plotly.newPlot("curve", traces, layout({ margin: { l: 56, r: 60, t: 10, b: 44 }, xaxis: { title: { text: "training step" } },
      yaxis: { title: { text: "loss (lines)", standoff: 10 }, rangemode: "tozero" },
      yaxis2: { title: { text: `dev ${metric} (dots)`, standoff: 10 }, overlaying: "y", side: "right", showgrid: false, tickmode: "auto",
        automargin: true } }), plain);
  };

  const key = (mark, text, colour) => {
    const sign = el("i", { className: `key ${mark}` });
    if (colour) sign.style.background = colour;
    return el("div", {}, ...(mark ? [sign] : []), text);
  };

  const run = r => {
    const got = r.test && r.test[results.metric];
    const score = r.state === "done" ? `${(scale * got).toFixed(digits)}` : r.state;
    const label = el("span", { textContent: `${r.task}, seed ${r.seed}: ${score}` });
    if (!r.command) return el("li", {}, label);
    const copy = el("button", { type: "button", textContent: "Copy" });
    copy.setAttribute("aria-label", `Copy the command of ${r.task}, seed ${r.seed}`);
    copy.addEventListener("click", () => {
      const done = () => { copy.textContent = "Copied"; setTimeout(() => { copy.textContent = "Copy"; }, 1500); };
      if (navigator.clipboard) { navigator.clipboard.writeText(r.command).then(done, () => select(code)); }
      else { select(code); done(); }
    });
    const code = el("code", { textContent: r.command, tabIndex: 0 });
    return el("li", {}, label, code, copy);
  };

  // Without a clipboard (a page from disk may have none) the command is at least selected.
  const select = node => {
    const range = document.createRange();
    range.selectNodeContents(node);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    document.execCommand("copy");
  };

  const chip = m => {
    const icon = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    icon.setAttribute("viewBox", "0 0 12 12");
    icon.setAttribute("aria-hidden", "true");
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("d", paths[look[m].shape]);
    path.setAttribute("fill", look[m].colour);
    icon.append(path);
    const button = el("button", { type: "button" }, icon, m);
    button.setAttribute("aria-pressed", "true");
    button.addEventListener("click", () => {
      hidden.has(m) ? hidden.delete(m) : hidden.add(m);
      button.setAttribute("aria-pressed", String(!hidden.has(m)));
      draw();
      list();
    });
    return button;
  };

  $("chips").append(...methods.map(chip));
  $("task").addEventListener("change", () => { draw(); detail(); });
  $("filter").addEventListener("input", () => { draw(); list(); });
  $("front").addEventListener("change", () => { draw(); list(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { draw(); detail(); });
  chosen = results.points.filter(p => p.front && value(p, all)).sort((a, b) => a.bytes - b.bytes).pop() ?? results.points[0];
  draw();
  detail();
  list();
  $("plot").on("plotly_click", e => {
    const i = e.points[0].customdata;
    if (i !== undefined) choose(results.points[i], false);
  });
})();
