// The report's one script: what a heatmap cell shows when pointed at, tapped or focused. No requests, no libraries.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const tip = document.getElementById("tip");
  const NS = "http://www.w3.org/2000/svg";
  let pinned = null;

  const signed = (v) => (v === null ? "–" : (v < 0 ? "−" : "+") + Math.abs(v).toFixed(2));
  const element = (name, attributes, text) => {
    const node = document.createElementNS(NS, name);
    for (const key in attributes) node.setAttribute(key, attributes[key]);
    if (text !== undefined) node.textContent = text;
    return node;
  };

  // One point per mixture: the row's value against the column's.
  function scatter(xs, ys, xName, yName) {
    const W = 238, H = 150, L = 8, R = 10, T = 8, B = 30;
    const svg = element("svg", { width: W, height: H });
    const points = xs.map((x, m) => [x, ys[m], data.mixtures[m]]).filter((p) => p[0] !== null && p[1] !== null);
    const range = (k) => {
      const v = points.map((p) => p[k]), low = Math.min(...v), high = Math.max(...v), pad = (high - low || 0.01) * 0.12;
      return [low - pad, high + pad];
    };
    if (!points.length) return svg;
    const [x0, x1] = range(0), [y0, y1] = range(1);
    svg.append(element("line", { class: "axisline", x1: L, x2: W - R, y1: H - B, y2: H - B }));
    svg.append(element("line", { class: "axisline", x1: L, x2: L, y1: T, y2: H - B }));
    for (const [x, y, name] of points) {
      const cx = L + ((x - x0) / (x1 - x0)) * (W - L - R), cy = H - B - ((y - y0) / (y1 - y0)) * (H - B - T);
      svg.append(element("circle", { cx, cy, r: 3.2, "data-mixture": name }));
      if (points.length <= 12) {
        const end = cx > W - 50;
        svg.append(element("text", { x: end ? cx - 5 : cx + 5, y: cy + 3, "text-anchor": end ? "end" : "start" }, name));
      }
    }
    const edge = (v, x, anchor) => svg.append(element("text", { x, y: H - B + 11, "text-anchor": anchor }, v.toFixed(3)));
    edge(Math.min(...points.map((p) => p[0])), L, "start");
    edge(Math.max(...points.map((p) => p[0])), W - R, "end");
    svg.append(element("text", { x: W / 2, y: H - 4, "text-anchor": "middle" }, `x: ${xName}   y: ${yName}`.slice(0, 52)));
    return svg;
  }

  function show(cell, event) {
    const [quantity, scale, protocol] = cell.ownerSVGElement.dataset.name.split("\u001f");
    let i = +cell.dataset.i, j = +cell.dataset.j;
    const B = data.benchmarks.length, matrix = data.matrices[cell.ownerSVGElement.dataset.name];
    const cross = protocol === "matrix_cross";
    const stage = cross ? [0, 1] : protocol === "matrix_" + data.stages[0] ? [0, 0] : [1, 1];
    const key = cross || i < j ? i * B + j : j * B + i;
    const [r, low, high, n, note] = matrix[key] || [null, null, null, 0, ""];
    const name = (b, t) => `${data.benchmarks[b]} (${data.stages[t]})`;
    const values = (b, t) => data.values[quantity][scale][t].map((row) => row[b]);
    tip.replaceChildren();
    const head = document.createElement("b");
    head.textContent = `${name(i, stage[0])} and ${name(j, stage[1])}`;
    const line = document.createElement("div");
    line.textContent = r === null
      ? `no correlation, n = ${n}`
      : `r = ${signed(r)}, ${data.level} interval [${signed(low)}, ${signed(high)}], n = ${n}`;
    const where = document.createElement("div");
    where.textContent = `${quantity}${data.scales.length > 1 ? ", " + scale : ""}${note ? "; " + note : ""}`;
    tip.append(head, line, where, scatter(values(i, stage[0]), values(j, stage[1]), name(i, stage[0]), name(j, stage[1])));
    tip.style.display = "block";
    const width = document.documentElement.clientWidth, box = tip.getBoundingClientRect();
    let x = event.pageX + 14, y = event.pageY + 14;
    if (x + box.width > window.scrollX + width - 6) x = Math.max(window.scrollX + 6, event.pageX - box.width - 14);
    if (x < window.scrollX + 6) x = window.scrollX + 6;
    if (event.clientY + box.height + 20 > window.innerHeight) y = Math.max(window.scrollY + 6, event.pageY - box.height - 14);
    tip.style.left = x + "px";
    tip.style.top = y + "px";
  }

  function hide() {
    tip.style.display = "none";
    if (pinned) pinned.classList.remove("pinned");
    pinned = null;
  }

  document.addEventListener("pointermove", (event) => {
    const cell = event.target.closest && event.target.closest(".cell");
    if (pinned) return;
    if (cell) show(cell, event);
    else tip.style.display = "none";
  });
  document.addEventListener("click", (event) => {
    const cell = event.target.closest && event.target.closest(".cell");
    const again = cell === pinned;
    hide();
    if (cell && !again) {
      show(cell, event);
      pinned = cell;
      cell.classList.add("pinned");
    }
  });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  window.addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => { d.open = true; }));
})();
