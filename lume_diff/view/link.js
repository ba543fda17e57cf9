// Tells the server that a frame has come, and the reader when none comes any more.
export function render({ model, el }) {
  const mark = document.createElement("span");
  mark.setAttribute("role", "status");
  mark.style.cssText = "font: 16px system-ui, sans-serif; white-space: nowrap; color: #ffffff;";
  mark.textContent = "● connecting";
  el.append(mark);
  let last = Date.now(), lost = false, was_away = false;

  const clock = (time) => new Date(time).toLocaleTimeString([], { hour12: false });
  const curtain = document.getElementById("lost");
  const since = document.getElementById("lost-since");

  const come = () => {
    last = Date.now();
    model.seen = model.sent;
    if (lost) {
      lost = was_away = false;
      document.body.classList.remove("lost");
      if (curtain) curtain.hidden = true;
    }
    mark.textContent = `● live ${clock(last)}`;
  };
  model.on("sent", come);
  if (model.sent) come();  // a frame that came with the page itself

  const look = async () => {
    if (Date.now() - last < model.patience * 1000) return;
    if (!lost) {
      lost = true;
      document.body.classList.add("lost");
      if (since) since.textContent = clock(last);
      if (curtain) curtain.hidden = false;
      mark.textContent = "✖ not connected";
    }
    if (!model.comes_back) return;
    try {
      const answer = await fetch("static/js/bokeh.min.js", { method: "HEAD", cache: "no-store" });
      // A server that is only slow would get slower if its pages loaded themselves again.
      const is_forgotten = Date.now() - last > 60000;
      if (answer.ok && lost && (was_away || is_forgotten)) window.location.reload();
    } catch {
      was_away = true;
    }
  };
  const timer = setInterval(look, 1000);
  return () => clearInterval(timer);
}
