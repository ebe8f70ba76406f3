"use strict";

// The arithmetic. tests/machinery/test_page.py compares it with bilevel.py and losses.py.

const sum = (x) => x.reduce((total, x_i) => total + x_i, 0);
const dot = (x, y) => sum(x.map((x_i, i) => x_i * y[i]));
const times = (P, x) => P.map((row) => dot(row, x));
const minus = (x, y) => x.map((x_i, i) => x_i - y[i]);
const clip = (x, low = 0, high = 1) => Math.max(low, Math.min(high, x));
const mix = (alpha, x, y) =>
  Array.isArray(x) ? x.map((x_i, i) => mix(alpha, x_i, y[i])) : (1 - alpha) * x + alpha * y;

function solve([[p, q], [r, s]], [x, y]) {
  const determinant = p * s - q * r;
  return [(s * x - q * y) / determinant, (p * y - r * x) / determinant];
}

function neumann(H, v, c, terms, step) {
  let [u, total] = [v, dot(c, v)];
  for (let k = 1; k < terms; k++) {
    u = minus(u, times(H, u).map((h_i) => step * h_i));
    total += dot(c, u);
  }
  return step * total;
}

// Eq. 3 on two parabolas: L_CLS has its minimum at a, L_MM at b, the held-out L_CLS at other.
function eq3({ A, a, M, b, other }, alpha, outer, terms, step) {
  const H = mix(alpha, A, M);
  const theta = solve(H, mix(alpha, times(A, a), times(M, b)));
  const apart = minus(theta, outer === "training" ? a : other);
  const v = times(A, apart);
  const c = minus(times(M, minus(theta, b)), times(A, minus(theta, a)));
  const move = solve(H, c).map((x) => -x); // d theta* / d alpha
  const series = -neumann(H, v, c, terms, step);
  return { theta, v, c, move, l_cls: dot(apart, v) / 2, exact: dot(v, move), series };
}

function softmax(row, tau) {
  const powers = row.map((s) => Math.exp((s - Math.max(...row)) / tau));
  return powers.map((power) => power / sum(powers));
}

// L_MM of a matrix s of similarities: the mean over its rows and its columns
function matching(s, tau) {
  const columns = s.map((_, k) => s.map((row) => row[k]));
  const guesses = [s, columns].flatMap((t) => t.map((row, i) => -Math.log(softmax(row, tau)[i])));
  return sum(guesses) / guesses.length;
}

// Four pairs: sample i's second feature is its first one, turned towards that of sample i + 1.
function similarities(degrees) {
  const angle = (degrees * Math.PI) / 180;
  const row = [Math.cos(angle), 0, 0, Math.sin(angle)];
  return [0, 1, 2, 3].map((i) => [0, 1, 2, 3].map((k) => row[(k - i + 4) % 4]));
}

// What K terms of the series make of 1/h
const weight = (h, terms, step) => (1 - (1 - step * h) ** terms) / h;

// The pictures. Without a script the page shows those that it has.

const $ = (id) => document.getElementById(id);
const number = (id) => Number($(id).value);
const place = (id, points) => $(id).setAttribute("points", points);
const signed = (x) => (x < 0 ? "" : "+") + x.toFixed(3);
const to = ([x, y, dx, dy], pairs) => // numbers -> pixels, as `to` of page.md
  pairs.map(([u, w]) => `${(x + dx * u).toFixed(1)},${(y + dy * w).toFixed(1)}`).join(" ");

function parabolas() {
  const problem = JSON.parse($("problem").textContent);
  const { plane, chart, reach } = problem;
  const outer = document.querySelector("[name=outer]:checked").value;
  const [alpha, terms] = [number("alpha"), number("terms")];
  const now = eq3(problem, alpha, outer, terms, 0.1);
  place("theta", to(plane, [now.theta, now.theta]));
  place("spot", to(chart, [[alpha, now.l_cls], [alpha, now.l_cls]]));
  for (const name of ["v", "c", "move"]) {
    const along = (length) => now.theta.map((x, i) => x + length * now[name][i]);
    place(`arrow-${name}`, to(plane, [now.theta, along(reach)]));
    const [x, y] = to(plane, [along(1.5 * reach)]).split(",");
    $(`name-${name}`).setAttribute("x", x);
    $(`name-${name}`).setAttribute("y", y);
  }
  for (const name of ["exact", "series"]) {
    const ends = [-0.15, 0.15].map((d) => [alpha + d, now.l_cls + d * now[name]]);
    place(`slope-${name}`, to(chart, ends));
  }
  $("parabolas").dataset.outer = outer;
  $("alpha-is").value = alpha.toFixed(2);
  $("terms-is").value = terms;
  const way = Math.abs(now.series) < 0.0005 ? "stays" : now.series > 0 ? "falls" : "rises";
  const by = `by ${terms} terms ${signed(now.series)}`;
  $("says").value = `Eq. 3 is ${signed(now.exact)}; ${by}: α ${way}.`;
  return now.series;
}

function drawn() {
  const alphas = $("drawn-values").value.split(/[ ,]+/).filter(Boolean).map(Number);
  const good = alphas.length === 10 && alphas.every((alpha) => alpha === clip(alpha));
  if (good) place("drawn", to([60, 170, 40, -150], alphas.map((alpha, i) => [i + 1, alpha])));
  $("drawn-code").textContent = good
    ? `def mine(t, T):\n    return [${alphas.join(", ")}][min(t, 10) - 1]\n`
    : "Give ten numbers from 0 to 1, one for each epoch.\n\n";
}

function draw(event) {
  if (event.type === "pointermove" && !event.buttons) return;
  const { left, top, width } = $("schedules").getBoundingClientRect();
  const scale = $("schedules").viewBox.baseVal.width / width;
  const epoch = Math.round(((event.clientX - left) * scale - 100) / 40);
  const alphas = $("drawn-values").value.split(/[ ,]+/);
  if (epoch in alphas) alphas[epoch] = clip((170 - (event.clientY - top) * scale) / 150).toFixed(2);
  $("drawn-values").value = alphas.join(" ");
  drawn();
}

function matrix() {
  const [tau, degrees] = [number("tau"), number("angle")];
  const s = similarities(degrees);
  $("matrix").replaceChildren(...s.map((row, i) => {
    const line = document.createElement("tr");
    softmax(row, tau).forEach((guess, k) => {
      const cell = line.insertCell();
      cell.style.background = `rgb(179 71 0 / ${0.6 * guess})`;
      cell.innerText = `${s[i][k].toFixed(2)}\n${(100 * guess).toFixed(0)} %`;
    });
    return line;
  }));
  $("tau-is").value = tau;
  $("angle-is").value = `${degrees}°`;
  $("matrix-says").value = `L_MM = ${matching(s, tau).toFixed(4)}; chance is log 4 = 1.3863`;
}

function series() {
  const [terms, step] = [number("series-terms"), number("step")];
  const curvatures = Array.from({ length: 80 }, (_, i) => (i + 1) / 20);
  const curve = (of) => curvatures.map((h) => [h, clip(of(h), -0.5, 4.5)]);
  place("inverse", to([60, 190, 95, -40], curve((h) => 1 / h)));
  place("partial", to([60, 190, 95, -40], curve((h) => weight(h, terms, step))));
  $("step-is").value = step;
  $("series-terms-is").value = terms;
  $("series-says").value = `More terms come closer to 1/h below h = ${(2 / step).toFixed(2)}.`;
}

function start() {
  const parts = { parabolas, drawn, matrix, series };
  for (const controls of document.querySelectorAll(".controls")) {
    controls.hidden = false;
    controls.addEventListener("input", parts[controls.dataset.of]);
    parts[controls.dataset.of]();
  }
  $("one-step").addEventListener("click", () => {
    $("alpha").value = clip(number("alpha") - 0.2 * parabolas());
    parabolas();
  });
  for (const kind of ["pointerdown", "pointermove"]) $("schedules").addEventListener(kind, draw);
}

// MathML has no titles: the element around a formula has the meaning of what you point at.
let around;
function point({ target }) {
  around?.removeAttribute("title");
  const symbol = target.closest("math:not([title] > math) [class]");
  around = symbol?.closest("math").parentElement;
  if (around) around.title = document.querySelector(`.${symbol.className}[title]`).title;
}

// A box that scrolls is a tab stop; a left column ends in sight.
function fit() {
  for (const box of document.querySelectorAll(".box, .scroll")) {
    const scrolls = box.scrollWidth > box.clientWidth + 1;
    box.classList.toggle("wide", scrolls);
    box.tabIndex = scrolls ? 0 : -1;
  }
  for (const left of document.querySelectorAll(".row > div:first-child"))
    left.style.top = `${Math.min(48, innerHeight - left.offsetHeight - 16)}px`;
}

if (typeof document !== "undefined") {
  start();
  fit();
  addEventListener("resize", fit);
  document.addEventListener("toggle", fit, true); // a test's code that opens
  for (const { className, title } of document.querySelectorAll("span[title]"))
    document.querySelectorAll(`.source [class$="-${className}"]`).forEach((x) => (x.title = title));
  document.addEventListener("mouseover", point);
  const list = document.querySelector("nav details");
  list.addEventListener("click", ({ target }) => target.closest("a") && (list.open = false));
}
