"use strict";

// Tables are sorted by a click on a heading: numbers as numbers, absent values last.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const direction = heading.getAttribute("aria-sort") === "descending" ? "ascending" : "descending";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", direction);
      const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
      const compare = (a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : Number(x) - Number(y);
        return direction === "ascending" ? order : -order;
      };
      const body = table.tBodies[0];
      body.append(...[...body.rows].sort(compare));
    });
  });
}

// An image opens large, with its map beside it.
const dialog = document.querySelector("dialog");
for (const button of document.querySelectorAll(".gallery button")) {
  button.addEventListener("click", () => {
    const place = dialog.querySelector("div");
    const images = [...button.querySelectorAll("img")].map((image) => image.cloneNode());
    const text = document.createElement("p");
    text.append(...button.parentElement.querySelector("figcaption").cloneNode(true).childNodes);
    place.replaceChildren(...images, text);
    dialog.showModal();
  });
}

// Curves: values at the pointer are in the legend below each.
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const charts = JSON.parse(document.getElementById("charts").textContent);
const drawn = [];
function draw() {
  drawn.splice(0).forEach((plot) => plot.destroy());
  for (const chart of charts) {
    const place = document.getElementById(chart.id);
    const axis = { stroke: colour("--muted"), grid: { stroke: colour("--rule"), width: 1 }, ticks: { show: false } };
    const format = (value) => (value === null || value === undefined ? "–" : chart.percent ? (100 * value).toFixed(1) + " %" : Number(value.toPrecision(4)).toString());
    const series = chart.series.map((each) => ({
      label: each.name, stroke: each.colour, width: 2, dash: each.dashed ? [5, 4] : [],
      points: { show: chart.epochs.length < 3 }, spanGaps: true, value: (_, value) => format(value),
    }));
    const mark = {
      hooks: { draw: [(plot) => {
        for (const epoch of chart.best) {
          const x = Math.round(plot.valToPos(epoch, "x", true));
          plot.ctx.save();
          plot.ctx.strokeStyle = colour("--muted");
          plot.ctx.setLineDash([2, 3]);
          plot.ctx.beginPath();
          plot.ctx.moveTo(x, plot.bbox.top);
          plot.ctx.lineTo(x, plot.bbox.top + plot.bbox.height);
          plot.ctx.stroke();
          plot.ctx.restore();
        }
      }] },
    };
    drawn.push(new uPlot({
      width: place.clientWidth, height: 230,
      cursor: { sync: { key: "epochs" } },
      scales: { x: { time: false } },
      axes: [
        { ...axis, size: 28, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000] },
        { ...axis, size: 58, values: (_, values) => values.map((v) => (v === null ? "" : chart.percent ? Math.round(100 * v) + " %" : format(v))) },
      ],
      series: [{ label: "epoch", value: (_, value) => value ?? "–" }, ...series],
      plugins: [mark],
    }, [chart.epochs, ...chart.series.map((each) => each.values)], place));
  }
}
draw();
let width = innerWidth;
addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; draw(); } });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
