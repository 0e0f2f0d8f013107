// The slice viewer. A volume arrives as a PNG sheet of its axial slices (see viewer.py); here it
// becomes one byte a voxel, index x + X * (y + Y * z), axes to the patient's right, front and top.
"use strict";

(async () => {
  const viewer = document.getElementById("viewer");
  const data = JSON.parse(document.getElementById("viewer-data").textContent);
  const stage = viewer.querySelector(".stage");
  const control = (name) => viewer.querySelector(`[name=${name}]`);
  const COLUMNS = 6; // rows shown at first; more can be chosen

  // axis across the slices, axes to the right and upwards, what lies left, right, up and down
  const PLANES = {
    axial: { axis: 2, across: 0, up: 1, ends: "LRAP" },
    coronal: { axis: 1, across: 0, up: 2, ends: "LRSI" },
    sagittal: { axis: 0, across: 1, up: 2, ends: "PASI" },
  };
  const GREY = Uint8Array.from({ length: 768 }, (_, i) => Math.floor(i / 3));
  const maps = Object.fromEntries(
    Object.entries(data.maps).map(([kind, text]) => [kind, bytes(text)]),
  );
  const SHARED = "real and synthetic"; // these have one window, so that they can be compared
  const state = { patient: null, volumes: null, at: [0, 0, 0], panes: [], hidden: new Set() };
  const white = new Map(); // window -> the level that is white

  function bytes(base64) {
    return Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  }

  async function decode(png, [X, Y, Z]) {
    const image = new Image();
    image.src = `data:image/png;base64,${png}`;
    await image.decode();
    const canvas = new OffscreenCanvas(image.width, image.height);
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    const sheet = context.getImageData(0, 0, image.width, image.height).data;
    const volume = new Uint8Array(X * Y * Z);
    const columns = Math.ceil(Math.sqrt(Z));
    for (let z = 0; z < Z; z++)
      for (let y = 0; y < Y; y++) {
        const start = (Math.floor(z / columns) * Y + y) * image.width + (z % columns) * X;
        for (let x = 0; x < X; x++) volume[x + X * (y + Y * z)] = sheet[4 * (start + x)];
      }
    return volume;
  }

  async function decodeAll(patient) {
    const group = async (sheets) =>
      new Map(await Promise.all(sheets.map(async (s) => [s.name, await decode(s.png, patient.shape)])));
    return {
      inputs: await group(patient.inputs),
      truth: await decode(patient.truth, patient.shape),
      predictions: await group(patient.predictions),
      spreads: await group(patient.spreads),
    };
  }

  // A pane: name, kind of its colours, and the value of a voxel in units of the shown range.
  function describePanes() {
    const { inputs, truth, predictions, spreads } = state.volumes;
    const grey = (name, volume, window = SHARED) => ({
      ...{ name, window, kind: "grey", value: (i) => volume[i] / 255 },
    });
    const groups = [[...inputs].map(([name, volume]) => grey(name, volume, name))];
    groups[0].push(grey("real", truth));
    for (const row of data.rows) {
      const made = predictions.get(row);
      if (!made || state.hidden.has(row)) continue;
      const group = [grey(row, made)];
      const error = (i) => Math.abs(made[i] - truth[i]) / 255;
      group.push({ name: "error", row, kind: "error", value: error });
      const spread = spreads.get(row);
      const unit = state.patient.spreadLimit / 255;
      if (spread) group.push({ name: "spread", row, kind: "spread", value: (i) => spread[i] * unit });
      group.score = state.patient.scores.find((score) => score.row === row)?.text;
      groups.push(group);
    }
    return groups;
  }

  function element(tag, className, text = "") {
    const made = document.createElement(tag);
    made.className = className;
    made.textContent = text;
    return made;
  }

  function buildPanes() {
    const groups = describePanes();
    stage.replaceChildren(element("div", "inputs"), element("div", "results"));
    stage.style.setProperty("--columns", Math.max(groups[0].length, groups.length - 1));
    state.panes = groups.flat();
    groups.forEach((group, place) => {
      const column = place ? element("div", "column") : stage.firstChild;
      group.forEach((pane) => column.append(buildPane(pane, group.score)));
      if (place) stage.lastChild.append(column);
    });
    fitPanes();
  }

  function buildPane(pane, score) {
    const figure = element("figure", "pane");
    const title = element("figcaption", "");
    title.append(element("span", "", pane.name));
    title.title = pane.name;
    if (score && pane.kind === "grey") title.append(element("small", "", ` ${score} ${data.unit}`));
    pane.readout = element("output", "");
    title.append(pane.readout);
    pane.canvas = element("canvas", "");
    pane.canvas.role = "img";
    const frame = element("div", "frame");
    frame.append(pane.canvas, ...["left", "right", "up", "down"].map((end) => element("i", end)));
    figure.append(title, frame);
    return figure;
  }

  const plane = () => PLANES[viewer.querySelector("[name=plane]:checked").value];
  const planeName = () => viewer.querySelector("[name=plane]:checked").value;
  // radiological: as seen from the feet, the patient's left is at the right
  const isMirrored = () => plane().across === 0 && control("side").value === "right";

  // Canvas sizes, aspect in millimetres and letters of a plane.
  function fitPanes() {
    const { across, up, axis, ends } = plane();
    const { shape, extent } = state.patient;
    const letters = isMirrored() ? [ends[1], ends[0], ends[2], ends[3]] : [...ends];
    for (const { canvas } of state.panes) {
      [canvas.width, canvas.height] = [shape[across], shape[up]];
      canvas.style.aspectRatio = `${extent[across]} / ${extent[up]}`;
      canvas.parentNode.querySelectorAll("i").forEach((mark, i) => (mark.textContent = letters[i]));
    }
    control("slice").max = shape[axis] - 1;
    draw();
  }

  // Index of the pixel (column, line) of the shown slice in a volume.
  function indexer() {
    const { axis, across, up } = plane();
    const [X, Y] = state.patient.shape;
    const strides = [1, X, X * Y];
    const start = state.at[axis] * strides[axis];
    const top = state.patient.shape[up] - 1;
    return (column, line) =>
      start + place(column) * strides[across] + (top - line) * strides[up];
  }

  // Index across of a pixel column.
  const place = (column) =>
    isMirrored() ? state.patient.shape[plane().across] - 1 - column : column;

  const limitOf = ({ kind, window }) =>
    ({ grey: white.get(window), error: control("error").value, spread: data.limits.spread })[kind];

  function paint(pane, index) {
    const { width, height } = pane.canvas;
    const image = new ImageData(width, height);
    const colours = maps[pane.kind] ?? GREY;
    const scale = 255 / limitOf(pane);
    let byte = 0;
    for (let line = 0; line < height; line++)
      for (let column = 0; column < width; column++) {
        const level = 3 * Math.min(255, Math.round(pane.value(index(column, line)) * scale));
        image.data[byte++] = colours[level];
        image.data[byte++] = colours[level + 1];
        image.data[byte++] = colours[level + 2];
        image.data[byte++] = 255;
      }
    pane.canvas.getContext("2d").putImageData(image, 0, 0);
  }

  // Slices are counted as in the files, from 0, by the middle of what a shown slice averages.
  function fileSlice(axis) {
    const { origin, step } = state.patient;
    return Math.round(origin[axis] + (state.at[axis] + 0.5) * step[axis] - 0.5);
  }

  function draw() {
    const { axis } = plane();
    const index = indexer();
    const shown = `${planeName()} ${fileSlice(axis)}`;
    for (const pane of state.panes) {
      paint(pane, index);
      pane.canvas.ariaLabel = `${pane.row ? `${pane.row}, ` : ""}${pane.name}, ${shown}`;
    }
    control("slice").value = state.at[axis];
    tell("slice", fileSlice(axis));
    tell("contrast", `${Math.round(control("contrast").value * 100)} %`);
    tell("error", Number(control("error").value).toFixed(2));
  }

  function tell(name, text) {
    control(name).nextElementSibling.textContent = text;
  }

  function drawBars() {
    const kinds = [...new Set(state.panes.map((pane) => pane.kind))].filter((kind) => maps[kind]);
    const bars = kinds.map((kind) => {
      const bar = element("span", "bar");
      const canvas = element("canvas", "");
      [canvas.width, canvas.height] = [256, 1];
      const image = new ImageData(256, 1);
      for (let i = 0; i < 256; i++) image.data.set([...maps[kind].slice(3 * i, 3 * i + 3), 255], 4 * i);
      canvas.getContext("2d").putImageData(image, 0, 0);
      bar.append(`${kind} 0 `, canvas, ` ${Number(limitOf({ kind })).toPrecision(2)}`);
      return bar;
    });
    viewer.querySelector(".bars").replaceChildren(...bars);
  }

  function moveTo(slice) {
    const { axis } = plane();
    state.at[axis] = Math.max(0, Math.min(state.patient.shape[axis] - 1, slice));
    draw();
  }

  const here = () => state.at[plane().axis];

  // Pixel under the pointer as [column, line], or null beside the images.
  function pixel(event) {
    const canvas = event.target.closest(".frame")?.querySelector("canvas");
    if (!canvas) return null;
    const { left, top, width, height } = canvas.getBoundingClientRect();
    const across = (event.clientX - left) / width;
    const down = (event.clientY - top) / height;
    if (Math.min(across, down) < 0 || Math.max(across, down) >= 1) return null;
    stage.style.setProperty("--across", `${100 * across}%`);
    stage.style.setProperty("--down", `${100 * down}%`);
    return [Math.floor(across * canvas.width), Math.floor(down * canvas.height)];
  }

  // The same place in all panes: a cross, and the values there.
  function showCursor(event) {
    const found = pixel(event);
    stage.classList.toggle("cursor", Boolean(found));
    const index = indexer();
    for (const pane of state.panes)
      pane.readout.textContent = found ? pane.value(index(...found)).toFixed(2) : "";
  }

  function onClick(event) {
    const found = pixel(event);
    if (!found) return;
    const { across, up } = plane();
    state.at[across] = place(found[0]);
    state.at[up] = state.patient.shape[up] - 1 - found[1];
  }

  function onWheel(event) {
    const { axis } = plane();
    const next = here() - Math.sign(event.deltaY);
    // beyond the first and the last slice the page scrolls on
    if (!pixel(event) || event.ctrlKey || next < 0 || next >= state.patient.shape[axis]) return;
    event.preventDefault();
    moveTo(next);
  }

  function onKey(event) {
    const last = state.patient.shape[plane().axis] - 1;
    const steps = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 10, PageDown: -10 };
    const ends = { Home: 0, End: last };
    if (!(event.key in steps) && !(event.key in ends)) return;
    event.preventDefault();
    moveTo(ends[event.key] ?? here() + steps[event.key]);
  }

  // A swipe to the side leafs through the slices; one up or down scrolls the page (touch-action).
  let swipe = null;
  function onSwipe(event) {
    if (event.pointerType !== "touch") return showCursor(event);
    if (event.type === "pointerdown") swipe = { x: event.clientX, slice: here() };
    else if (swipe) moveTo(swipe.slice + Math.round((event.clientX - swipe.x) / 8));
  }

  // JSON knows no infinity, so that scores are text; a missing one counts as the worst.
  function worth(patient, row) {
    const text = patient.scores.find((score) => score.row === row)?.text;
    if (text === undefined) return -Infinity;
    const value = text.endsWith("inf") ? (text === "inf" ? Infinity : -Infinity) : Number(text);
    return data.sign * value;
  }

  function listPatients() {
    const row = control("order").value;
    const patients = [...data.patients]; // they come in the order of the mean
    if (row) patients.sort((a, b) => worth(a, row) - worth(b, row));
    const chosen = control("patient").value;
    control("patient").replaceChildren(
      ...patients.map((patient) => {
        const score = patient.scores.find((found) => found.row === row);
        return new Option(patient.id + (score ? ` · ${score.text} ${data.unit}` : ""), patient.id);
      }),
    );
    if (chosen) control("patient").value = chosen;
  }

  async function choosePatient() {
    const patient = data.patients.find(({ id }) => id === control("patient").value);
    const volumes = await decodeAll(patient);
    if (patient.id !== control("patient").value) return; // another was chosen meanwhile
    Object.assign(state, { patient, volumes, at: [...patient.focus] });
    buildPanes();
    drawBars();
  }

  function listRows() {
    const choices = data.rows.map((row, place) => {
      const label = element("label", "");
      const box = element("input", "");
      Object.assign(box, { type: "checkbox", checked: place < COLUMNS });
      if (!box.checked) state.hidden.add(row);
      box.addEventListener("change", () => {
        box.checked ? state.hidden.delete(row) : state.hidden.add(row);
        buildPanes();
      });
      label.append(box, ` ${row}`);
      return label;
    });
    viewer.querySelector(".rows").append(...choices);
    viewer.querySelector(".rows").hidden = data.rows.length < 2;
    control("order").closest("label").hidden = !data.ordered;
    control("order").append(new Option("the mean", ""), ...data.rows.map((row) => new Option(row, row)));
  }

  // The slider sets the white of one window, or of all.
  function setWhite() {
    const chosen = control("window").value;
    for (const window of white.keys())
      if (!chosen || window === chosen) white.set(window, control("contrast").value);
    draw();
  }

  function listWindows() {
    const names = [...data.patients[0].inputs.map(({ name }) => name), SHARED];
    // inputs arrive in their own range, of which vessels are no part
    names.forEach((name) => white.set(name, name === SHARED ? data.limits.white : 1));
    const options = names.map((name) => new Option(name, name));
    control("window").append(new Option("all images", ""), ...options);
    control("contrast").value = data.limits.white;
  }

  function showWhite() {
    control("contrast").value = white.get(control("window").value || SHARED);
    draw();
  }

  listWindows();
  control("error").value = data.limits.error;
  listRows();
  listPatients();
  control("order").addEventListener("change", listPatients);
  control("patient").addEventListener("change", choosePatient);
  viewer.querySelectorAll("[name=plane]").forEach((b) => b.addEventListener("change", fitPanes));
  control("slice").addEventListener("input", () => moveTo(Number(control("slice").value)));
  control("contrast").addEventListener("input", setWhite);
  control("window").addEventListener("change", showWhite);
  control("side").addEventListener("change", fitPanes);
  control("error").addEventListener("input", () => (draw(), drawBars()));
  stage.addEventListener("wheel", onWheel, { passive: false });
  stage.addEventListener("keydown", onKey);
  stage.addEventListener("click", onClick);
  for (const type of ["pointerdown", "pointermove"]) stage.addEventListener(type, onSwipe);
  for (const type of ["pointerup", "pointercancel"]) stage.addEventListener(type, () => (swipe = null));
  stage.addEventListener("pointerleave", showCursor);
  await choosePatient();
})();
