// A table of knobs: plain HTML, so that it is reached and turned by keyboard and read by screen readers.
export function render({ model, el }) {
  const style = document.createElement("style");
  style.textContent = `
    input.filter { text-align: left; font: 15px system-ui, sans-serif; padding: 4px 8px; margin: 0 0 6px; width: 100%; box-sizing: border-box; }
    .scroll { max-height: 430px; overflow: auto; container-type: inline-size; }
    table { border-collapse: collapse; width: 100%; font: 15px/1.3 system-ui, sans-serif; color: #1a1a1a; }
    th { position: sticky; top: 0; background: #ffffff; text-align: left; z-index: 1; }
    th, td { padding: 3px 6px; border-bottom: 1px solid #d9d9d9; white-space: nowrap; }
    tbody th { font-weight: 600; }
    td.number { text-align: right; font-variant-numeric: tabular-nums; }
    input, select { font: inherit; width: 8.5em; text-align: right; box-sizing: border-box; }
    input[type=number] { appearance: textfield; }  /* the arrow keys do it */
    input:focus-visible, select:focus-visible { outline: 3px solid #0072b2; outline-offset: 1px; }
    input.waiting { border: 2px dashed #0072b2; }
    .range { position: relative; width: 90px; height: 10px; background: #d9d9d9; border-radius: 5px; }
    .range span { position: absolute; top: -2px; width: 4px; height: 14px; margin-left: -2px; background: #0072b2; }
    .ends { font-size: 12px; color: #444444; }
    .alarm { border-radius: 4px; padding: 1px 6px; white-space: normal; }
    tr.down td.number, tr.down input, tr.down select { color: #6b6b6b; font-style: italic; text-decoration: line-through; }
    @container (max-width: 640px) {
      table { font-size: 13px; }
      th, td { padding: 3px 4px; }
      tbody th { white-space: normal; overflow-wrap: anywhere; min-width: 8em; }
      td.state { min-width: 5.6em; }
      input, select { width: 6.4em; }
      .range { width: 70px; }
    }
    .note { color: #8a2500; font: 15px system-ui, sans-serif; min-height: 1.4em; margin-top: 4px; }
  `;
  const filter = document.createElement("input");
  filter.className = "filter";
  filter.type = "search";
  filter.placeholder = "Filter by name";
  filter.setAttribute("aria-label", "Filter knobs by name");
  const scroll = document.createElement("div");
  scroll.className = "scroll";
  const table = document.createElement("table");
  table.innerHTML = "<thead><tr>" + ["Knob", "Set-point", "Unit", "Readback", "Alarm", "Limits"]
    .map((word) => `<th scope="col">${word}</th>`).join("") + "</tr></thead>";
  const body = document.createElement("tbody");
  const note = document.createElement("div");
  note.className = "note";
  note.setAttribute("role", "status");
  note.setAttribute("aria-live", "polite");
  table.append(body);
  scroll.append(table);
  el.append(style, filter, scroll, note);

  const rows = new Map();
  let values = JSON.parse(model.rows);
  const cell = (row, content, kind) => {
    const made = document.createElement("td");
    if (kind) made.className = kind;
    if (content !== undefined) made.append(content);
    row.append(made);
    return made;
  };

  const control = (knob) => {
    if (knob.choices) {
      const made = document.createElement("select");
      for (const choice of knob.choices) made.append(new Option(choice, choice));
      return made;
    }
    const made = document.createElement("input");
    made.type = "number";
    made.step = knob.step;
    return made;
  };

  const build = () => {
    body.replaceChildren();
    rows.clear();
    for (const knob of model.knobs) {
      const row = document.createElement("tr");
      const head = document.createElement("th");
      head.scope = "row";
      for (const part of knob.name.split(/(?<=[:._-])/)) head.append(part, document.createElement("wbr"));
      head.title = knob.description;
      row.append(head);
      const input = control(knob);
      input.setAttribute("aria-label", knob.unit ? `${knob.name} in ${knob.unit}` : knob.name);
      input.dataset.knob = knob.name;
      input.addEventListener("change", () => {
        if (input.value === "") return show(knob.name);
        input.classList.add("waiting");
        note.textContent = "";
        model.send_msg({ name: knob.name, value: input.value });
      });
      input.addEventListener("keydown", (event) => {
        if (event.key === "Escape") { input.blur(); show(knob.name); }
        const turn = { ArrowUp: 1, ArrowDown: -1 }[event.key];
        if (turn && !knob.choices && Number.isFinite(knob.step)) {
          event.preventDefault();  // the browser's own step goes to a multiple of it, and not on from where the knob is
          input.value = Number((Number(input.value) + turn * knob.step).toPrecision(12));
          input.dispatchEvent(new Event("change"));
        }
      });
      input.addEventListener("blur", () => show(knob.name));
      cell(row, input);
      cell(row, knob.unit);
      const readback = cell(row, "", "number");
      const alarm = cell(row, "", "state");
      const limits = cell(row);
      rows.set(knob.name, { row, input, readback, limits, alarm });
      body.append(row);
      show(knob.name);
    }
  };

  const show = (name) => {
    const parts = rows.get(name);
    const now = values[name];
    if (!parts || !now) return;
    const { row, input, readback, limits, alarm } = parts;
    const root = el.getRootNode();
    if (root.activeElement !== input && !input.classList.contains("waiting") && input.value !== now.value) input.value = now.value;
    input.disabled = !model.writable;
    row.className = now.holds ? "" : "down";
    if (readback.textContent !== now.readback) readback.textContent = now.readback;
    if (limits.dataset.shown !== now.limits + now.at) {
      limits.dataset.shown = now.limits + now.at;
      const bar = now.at === null ? "" : `<div class="range" aria-hidden="true"><span style="left:${100 * now.at}%"></span></div>`;
      limits.innerHTML = bar;
      const ends = document.createElement("span");
      ends.className = "ends";
      ends.textContent = now.limits;
      limits.append(ends);
    }
    if (alarm.textContent !== now.alarm) {
      alarm.replaceChildren();
      const mark = document.createElement("span");
      mark.className = "alarm";
      mark.textContent = now.alarm;
      mark.style.background = now.fill;
      mark.style.color = now.ink;
      alarm.append(mark);
    }
  };

  const choose = () => {
    const word = filter.value.toLowerCase();
    for (const [name, { row }] of rows) row.hidden = !name.toLowerCase().includes(word);
  };
  filter.addEventListener("input", choose);
  model.on("rows", () => {
    values = JSON.parse(model.rows);
    for (const name of rows.keys()) show(name);
  });
  model.on("writable", () => { for (const name of rows.keys()) show(name); });
  model.on("knobs", build);
  model.on("msg:custom", (answer) => {
    const parts = rows.get(answer.name);
    if (parts) parts.input.classList.remove("waiting");
    note.textContent = answer.error ? `✖ ${answer.name} was not written: ${answer.error}` : "";
    if (parts && answer.error) parts.input.value = values[answer.name].value;
    show(answer.name);
  });
  build();
}
