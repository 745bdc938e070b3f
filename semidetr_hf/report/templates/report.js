"use strict";

const tip = document.getElementById("tip");

function valuesOf(place) {
  return JSON.parse(place.querySelector("script.values").textContent);
}

function written(value) {
  return Number(value.toPrecision(4)).toLocaleString("en");
}

// Returns what the visible lines are nearest to x, and x itself moved to the nearest point of any of them.
function readOff(values, isShown, x) {
  const found = values.lines.filter((_, line) => isShown(line)).map(({name, points}) => ({
    name, point: points.reduce((best, point) => Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best),
  }));
  const nearest = found.map(({point}) => point[0])
    .reduce((best, place) => Math.abs(place - x) < Math.abs(best - x) ? place : best);
  return {nearest, found: found.filter(({point}) => point[0] === nearest)};
}

for (const chart of document.querySelectorAll(".chart")) {
  const plot = chart.querySelector(".plot"), cursor = plot.querySelector(".cursor");
  const curves = [...plot.querySelectorAll(".curve")], values = valuesOf(chart);
  const [left, right] = values.frame, [low, high] = values.x, width = plot.viewBox.baseVal.width;
  let current = null;

  function show(x) {
    const {nearest, found} = readOff(values, (line) => !curves[line].classList.contains("off"), x);
    const place = left + (nearest - low) / (high - low) * (right - left);
    current = nearest;
    cursor.setAttribute("transform", `translate(${place} 0)`);
    cursor.classList.remove("off");
    tip.textContent = [written(nearest), ...found.map(({name, point}) => `${name}: ${written(point[1])}`)].join("\n");
    tip.hidden = false;
    const frame = plot.getBoundingClientRect(), across = frame.left + place * frame.width / width;
    tip.style.left = `${Math.max(4, Math.min(across + 12, window.innerWidth - tip.offsetWidth - 4))}px`;
    tip.style.top = `${Math.max(4, frame.top + 8)}px`;
  }

  function hide() {
    cursor.classList.add("off");
    tip.hidden = true;
    current = null;
  }

  plot.addEventListener("pointermove", (event) => {
    const frame = plot.getBoundingClientRect();
    const share = ((event.clientX - frame.left) * width / frame.width - left) / (right - left);
    show(low + Math.max(0, Math.min(1, share)) * (high - low));
  });
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    event.preventDefault();
    const all = [...new Set(values.lines.flatMap(({points}) => points.map(([x]) => x)))].sort((a, b) => a - b);
    const here = current === null ? -1 : all.indexOf(current);
    const next = event.key === "ArrowRight" ? here + 1 : here - 1;
    show(all[Math.max(0, Math.min(all.length - 1, next))]);
  });
}

const precision = document.getElementById("precision");
if (precision) {
  const select = precision.querySelector("select"), chosen = document.getElementById("chosen-class");
  const update = () => {
    for (const curve of precision.querySelectorAll(".curve")) {
      curve.classList.toggle("off", curve.dataset.line !== "0" && curve.dataset.line !== select.value);
    }
    chosen.textContent = select.selectedOptions[0].textContent;
  };
  select.addEventListener("change", update);
  update();  // a browser that comes back to the page may remember another choice
}

const confusions = document.getElementById("confusions");
if (confusions) {
  const {matrices, thresholds, f1} = valuesOf(confusions);
  const slider = confusions.querySelector("input"), [threshold, score] = confusions.querySelectorAll("output");
  const rows = [...confusions.querySelectorAll("tbody tr")].map((row) => [...row.querySelectorAll("td")]);
  const update = () => {
    const place = Number(slider.value);
    threshold.textContent = thresholds[place].toFixed(2);
    score.textContent = f1[place].toFixed(3);
    matrices[place].forEach((counts, row) => {
      const total = Math.max(1, counts.reduce((sum, count) => sum + count, 0));
      counts.forEach((count, column) => {
        const cell = rows[row][column];
        cell.textContent = count || "";
        cell.style.setProperty("--share", (count / total).toFixed(3));
      });
    });
  };
  slider.addEventListener("input", update);
  update();
}
