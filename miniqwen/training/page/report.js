"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const find = (id) => document.getElementById(id);
  const make = (tag, text, kind) => {  // text never becomes markup
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (kind) element.className = kind;
    return element;
  };

  // ---- light and dark
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => root.dataset.theme ? root.dataset.theme === "dark" : system.matches;
  const theme = find("theme");
  const remembered = (value) => {  // a page from a file may have no storage
    try {
      if (value) localStorage.setItem("miniqwen-theme", value);
      return localStorage.getItem("miniqwen-theme");
    } catch { return null; }
  };
  const before = remembered();
  if (before === "dark" || before === "light") root.dataset.theme = before;
  theme.hidden = false;
  const themed = () => {
    theme.setAttribute("aria-pressed", String(isDark()));
    drawAll();
  };
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    remembered(root.dataset.theme);
    themed();
  });
  system.addEventListener("change", themed);

  // ---- numbers
  const short = (value) => {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    if (size >= 1e4) return Math.round(value).toLocaleString("en");
    return Number.isInteger(value) || size === 0 ? String(value) : size < 1e-3 ? value.toExponential(2) : String(Number(value.toPrecision(4)));
  };
  const tick = (value) => {
    if (value === null || value === undefined) return "";
    const size = Math.abs(value);
    for (const [unit, name] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
      if (size >= unit) return `${Number((value / unit).toPrecision(4))}${name}`;
    }
    return size !== 0 && size < 1e-3 ? value.toExponential(0) : String(Number(value.toPrecision(4)));
  };

  // ---- the horizontal axis: updates, or what had been done by then
  let axis = "step";
  const between = ([steps, values], step) => {
    let low = 0, high = steps.length - 1;
    if (high < 0 || step >= steps[high]) return high < 0 ? step : values[high];
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (steps[middle] <= step) low = middle; else high = middle;
    }
    const share = steps[high] === steps[low] ? 0 : (step - steps[low]) / (steps[high] - steps[low]);
    return step <= steps[0] ? values[0] : values[low] + share * (values[high] - values[low]);
  };
  const place = (run, step) => {
    const clock = data.runs[run].clock[axis];
    if (axis === "step" || !clock) return step;
    return between(clock, step) / (axis === "elapsed" ? 3600 : 1);
  };
  const AXES = { step: "update", tokens: "tokens", elapsed: "hours" };

  // ---- curves
  const color = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const several = data.runs.length > 1;
  // one run: a colour a metric; several: a colour a run, and a dash a metric
  const DASHES = [[], [7, 4], [2, 3], [10, 3, 2, 3]];
  const look = (chart, series) => {
    const names = [...new Set(chart.series.map((one) => one.name))];
    const number = names.indexOf(series.name);
    return several
      ? { stroke: color(`--c${series.run % 8}`), dash: DASHES[number % DASHES.length] }
      : { stroke: color(`--c${number % 8}`), dash: DASHES[Math.floor(number / 8) % DASHES.length] };
  };
  const sync = uPlot.sync("curves");
  const drawn = [];

  const marks = (chart, shown) => (plot) => {
    const { ctx, bbox } = plot;
    const ratio = devicePixelRatio || 1;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    const visible = (run) => chart.series.some((series, n) => series.run === run && shown[n]);
    data.runs.forEach((run, number) => {
      if (!visible(number)) return;
      ctx.strokeStyle = several ? color(`--c${number % 8}`) : color("--muted");
      ctx.lineWidth = ratio;
      ctx.setLineDash([4 * ratio, 4 * ratio]);
      for (const step of run.lives.slice(1)) {
        const x = plot.valToPos(place(number, step), "x", true);
        ctx.beginPath(); ctx.moveTo(x, bbox.top); ctx.lineTo(x, bbox.top + bbox.height); ctx.stroke();
      }
    });
    if (chart.bound !== null) {
      const y = plot.valToPos(chart.bound, "y", true);
      ctx.strokeStyle = color("--good");
      ctx.setLineDash([2 * ratio, 4 * ratio]);
      ctx.beginPath(); ctx.moveTo(bbox.left, y); ctx.lineTo(bbox.left + bbox.width, y); ctx.stroke();
    }
    ctx.restore();  // marks may reach over the edge
    ctx.save();
    for (const mark of chart.marks) {
      if (!visible(mark.run)) continue;
      const x = plot.valToPos(place(mark.run, mark.step), "x", true);
      if (x < bbox.left - 1 || x > bbox.left + bbox.width + 1) continue;
      ctx.beginPath();
      if (mark.best) {
        const y = plot.valToPos(mark.value, "y", true);
        ctx.arc(x, y, 5 * ratio, 0, 2 * Math.PI);
        ctx.fillStyle = several ? color(`--c${mark.run % 8}`) : color("--good"); ctx.fill();
        ctx.strokeStyle = color("--panel"); ctx.lineWidth = 2 * ratio; ctx.stroke();
      } else {
        const y = bbox.top + bbox.height;
        ctx.moveTo(x, y - 11 * ratio); ctx.lineTo(x - 6 * ratio, y); ctx.lineTo(x + 6 * ratio, y); ctx.closePath();
        ctx.fillStyle = color("--warn"); ctx.fill();
      }
    }
    ctx.restore();
  };

  const aligned = (chart) => uPlot.join(chart.series.map((series) => {
    const steps = series.steps.map((step) => place(series.run, step));
    return [steps, series.values];
  }));

  const draw = (one) => {
    const { chart, figure, shown } = one;
    if (one.plot) one.plot.destroy();
    const target = figure.querySelector(".plot");
    const readout = figure.querySelector(".readout");
    const rule = { stroke: color("--muted"), grid: { stroke: color("--grid"), width: 1 }, ticks: { stroke: color("--grid"), width: 1 }, font: "12px system-ui, sans-serif" };
    const values = (plot, splits) => splits.map(tick);
    one.plot = new uPlot({
      width: Math.max(target.clientWidth, 200),
      height: 200, padding: [10, 14, 0, 0],
      legend: { show: false },
      cursor: { sync: { key: sync.key }, points: { size: 7 } },
      scales: { x: { time: false }, y: { distr: one.log ? 3 : 1 } },
      axes: [{ ...rule, values, space: 60, size: 30 }, { ...rule, values, size: 56 }],
      series: [{}, ...chart.series.map((series, n) => ({
        ...look(chart, series), label: series.label, width: 2, show: shown[n], spanGaps: false,
        points: { show: series.values.length < (several ? 16 : 32), size: 5 },
      }))],
      hooks: {
        draw: [marks(chart, shown)],
        setCursor: [(plot) => {
          const at = plot.cursor.idx;
          if (at === null || at === undefined) { readout.textContent = "\u00a0"; return; }
          const said = chart.series
            .map((series, n) => [series.label, plot.data[n + 1][at], shown[n]])
            .filter(([, value, isShown]) => isShown && value !== undefined)
            .map(([label, value]) => `${label} ${short(value)}`);
          readout.textContent = `${AXES[axis]} ${short(plot.data[0][at])}: ${said.join(", ")}`;
        }],
      },
    }, aligned(chart), target);
  };

  const legend = (one) => {
    const list = one.figure.querySelector(".legend");
    list.replaceChildren();
    one.chart.series.forEach((series, n) => {
      const button = make("button");
      button.type = "button";
      button.setAttribute("aria-pressed", String(one.shown[n]));
      const { stroke, dash } = look(one.chart, series);
      const swatch = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      for (const [name, value] of [["width", 22], ["height", 8], ["aria-hidden", "true"]]) swatch.setAttribute(name, value);
      const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
      for (const [name, value] of [["x1", 0], ["x2", 22], ["y1", 4], ["y2", 4], ["stroke", stroke], ["stroke-width", 3], ["stroke-dasharray", dash.join(" ")]]) line.setAttribute(name, value);
      swatch.append(line);
      const last = series.values[series.values.length - 1];
      button.append(swatch, `${series.label} ${short(last)}`);
      button.addEventListener("click", () => {
        one.shown[n] = !one.shown[n];
        legend(one);
        draw(one);
        list.children[n].focus();
      });
      list.append(button);
    });
  };

  const table = (one) => {
    const [steps, ...columns] = uPlot.join(one.chart.series.map((series) => [series.steps, series.values]));
    const found = make("table");
    const head = found.createTHead().insertRow();
    for (const name of ["update", ...one.chart.series.map((series) => series.label)]) {
      const cell = make("th", name, "n");
      cell.scope = "col";
      head.append(cell);
    }
    const body = found.createTBody();
    steps.forEach((step, n) => {
      const row = body.insertRow();
      row.append(make("td", String(step), "n"));
      for (const column of columns) {
        const value = column[n];
        row.append(make("td", value === undefined ? "" : value === null ? "not finite" : String(value), "n"));
      }
    });
    one.figure.querySelector(".table").replaceChildren(found);
  };

  const drawAll = () => drawn.forEach((one) => { legend(one); draw(one); });

  data.charts.forEach((chart, number) => {
    const figure = find(`chart-${number}`);
    const one = { chart, figure, shown: chart.series.map(() => true), log: false, plot: null };
    const log = figure.querySelector(".log");
    if (chart.series.every((series) => series.values.every((value) => value === null || value > 0))) {
      log.hidden = false;
      log.setAttribute("aria-label", `logarithmic scale: ${figure.querySelector("h4").textContent}`);
      log.addEventListener("click", () => {
        one.log = !one.log;
        log.setAttribute("aria-pressed", String(one.log));
        draw(one);
      });
    }
    figure.querySelector("details.values").addEventListener("toggle", (event) => {
      if (event.target.open) table(one);
    });
    drawn.push(one);
    new ResizeObserver(() => {
      const width = figure.querySelector(".plot").clientWidth;
      if (one.plot && width && Math.abs(width - one.plot.width) > 1) one.plot.setSize({ width, height: 200 });
    }).observe(figure);
  });
  if (data.charts.length) {
    const select = find("axis");
    for (const option of [...select.options]) {
      if (option.value !== "step" && !data.runs.every((run) => run.clock[option.value])) option.remove();
    }
    find("axis-controls").hidden = false;
    select.addEventListener("change", () => { axis = select.value; drawAll(); });
  }
  themed();

  // ---- samples
  if (!data.samples.length) return;
  const from = find("from"), verdict = find("verdict"), words = find("words");
  const count = find("count"), cards = find("cards"), more = find("more");
  const AT_ONCE = 24;
  let shown = AT_ONCE;
  for (const name of new Set(data.samples.map((sample) => sample.from))) from.append(new Option(name, name));
  if (from.options.length > 1) from.prepend(new Option("all", ""));
  from.selectedIndex = 0;
  verdict.parentElement.hidden = data.samples.every((sample) => typeof sample.correct !== "boolean");

  const card = (sample) => {
    const found = make("li", undefined, "card");
    if (sample.prompt !== undefined) {
      found.append(make("span", `update ${sample.step.toLocaleString("en")}`, "tag"));
      const text = make("p", sample.prompt);
      text.append(make("mark", sample.completion));
      found.append(text);
      if (sample.answer !== undefined) found.append(make("p", `right: ${sample.answer}`, "muted"));
      return found;
    }
    const verdicts = { true: ["right", "tag good"], false: ["wrong", "tag bad"] };
    found.append(make("span", ...(verdicts[String(sample.correct)] || ["no right answer known", "tag"])));
    found.append(make("p", sample.question));
    if (sample.choices && sample.choices.length) {
      const list = make("ul");
      sample.choices.forEach((choice, n) => {
        const isAnswer = choice === sample.answer, isSaid = choice === sample.prediction;
        const line = make("li", undefined, isAnswer ? "answer" : isSaid ? "wrong" : "");
        line.append(make("span", choice + (isAnswer ? " (right)" : "") + (isSaid ? " (said)" : "")));
        if (sample.scores) line.append(make("span", short(sample.scores[n]), "muted"));
        list.append(line);
      });
      found.append(list);
    } else if (sample.answer !== undefined) found.append(make("p", `right: ${sample.answer}`, "muted"));
    if (sample.generated !== undefined) found.append(make("p", `it wrote: ${sample.generated}`));
    found.append(make("span", sample.id === undefined ? sample.from : `${sample.from}, ${sample.id}`, "muted"));
    return found;
  };
  const text = (sample) => [sample.question, sample.prompt, sample.completion, sample.answer, sample.prediction, sample.generated, sample.id, ...(sample.choices || [])].join("\n").toLowerCase();
  const texts = data.samples.map(text);
  const filtered = () => data.samples.filter((sample, n) =>
    (!from.value || sample.from === from.value)
    && (!verdict.value || sample.correct === (verdict.value === "right"))
    && words.value.toLowerCase().split(/\s+/).every((word) => texts[n].includes(word)));
  const show = () => {
    const found = filtered();
    cards.replaceChildren(...found.slice(0, shown).map(card));
    more.hidden = found.length <= shown;
    const own = data.samples.find((sample) => sample.from === from.value);
    count.textContent = `${Math.min(shown, found.length)} of ${found.length} shown${own ? `; this page has ${own.of}` : ""}`;
  };
  const again = () => { shown = AT_ONCE; show(); };
  for (const control of [from, verdict]) control.addEventListener("change", again);
  words.addEventListener("input", again);
  find("filter").addEventListener("submit", (event) => event.preventDefault());
  find("filter").hidden = false;
  more.addEventListener("click", () => { shown += AT_ONCE; show(); });
  show();
})();
