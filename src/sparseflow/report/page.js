"use strict";
(() => {
  // Of a page without this script nothing is missing but the switches and the values under the pointer.
  const marks = [...document.querySelectorAll("[data-method]")];
  const boxes = [...document.querySelectorAll("#switches input")];
  const panel = document.getElementById("switches");
  if (panel) {
    const state = panel.querySelector("output");
    const show = () => {
      const off = new Set(boxes.filter((box) => !box.checked).map((box) => box.value));
      for (const mark of marks) mark.classList.toggle("off", mark.dataset.method.split(" ").some((method) => off.has(method)));
      state.textContent = `${boxes.length - off.size} of ${boxes.length}`;
    };
    const turn = (on) => { for (const box of boxes) box.checked = on; };
    const read = () => {
      const found = /^#off=(.*)$/.exec(location.hash);
      if (!found) return;
      const off = decodeURIComponent(found[1]).split(",");
      for (const box of boxes) box.checked = !off.includes(box.value);
      show();
    };
    const write = () => {
      const off = boxes.filter((box) => !box.checked).map((box) => encodeURIComponent(box.value));
      history.replaceState(null, "", off.length ? `#off=${off.join(",")}` : location.pathname + location.search);
      show();
    };
    panel.addEventListener("change", write);
    panel.querySelector("[data-turn=on]").addEventListener("click", () => { turn(true); write(); });
    panel.querySelector("[data-turn=off]").addEventListener("click", () => { turn(false); write(); });
    addEventListener("hashchange", read);
    panel.hidden = false;
    show();
    read();
  }

  // Places on axes, from the picture's units to values: matplotlib's linear, log and symlog scales.
  const forward = ([scale, , , threshold, width]) => {
    if (scale === "log") return Math.log10;
    if (scale !== "symlog") return (v) => v;
    const inner = width / 0.9;
    return (v) => Math.abs(v) <= threshold ? v * inner
      : Math.sign(v) * threshold * (inner + Math.log10(Math.abs(v) / threshold));
  };
  const backward = ([scale, , , threshold, width]) => {
    if (scale === "log") return (t) => 10 ** t;
    if (scale !== "symlog") return (t) => t;
    const inner = width / 0.9;
    return (t) => Math.abs(t) <= threshold * inner ? t / inner
      : Math.sign(t) * threshold * 10 ** (Math.abs(t) / threshold - inner);
  };
  const value = (scale, share) => {
    const to = forward(scale);
    return backward(scale)(to(scale[1]) + share * (to(scale[2]) - to(scale[1])));
  };
  // As exactly as a picture's place can be read: to a thousandth of the axis.
  const written = (scale, share) => {
    const v = value(scale, share), step = Math.abs(value(scale, share + 1e-3) - v);
    const digits = Math.min(12, Math.max(0, -Math.floor(Math.log10(step))));
    return (Number(v.toFixed(digits)) + 0).toLocaleString("en", { maximumFractionDigits: digits });
  };

  // The vertex of a curve that is nearest to the pointer, as values of its axes.
  const nearest = (mark, x, y) => {
    const axes = mark.closest(".axes"), line = mark.querySelector(":scope > path");
    if (!axes || !line) return "";
    const frame = axes.querySelector("path").getBBox(), [across, up] = JSON.parse(axes.dataset.scales);
    const place = new DOMPoint(x, y).matrixTransform(line.getScreenCTM().inverse());
    const numbers = (line.getAttribute("d").match(/-?[\d.]+/g) || []).map(Number);
    let best = null;
    for (let i = 0; i + 1 < numbers.length; i += 2) {
      const far = Math.hypot(numbers[i] - place.x, numbers[i + 1] - place.y);
      if (!best || far < best[0]) best = [far, numbers[i], numbers[i + 1]];
    }
    if (!best) return "";
    const at = written(across, (best[1] - frame.x) / frame.width);
    const reads = written(up, 1 - (best[2] - frame.y) / frame.height);
    return `: ${reads} at ${at}`;
  };

  const tip = document.getElementById("tip");
  const told = new Map();
  for (const title of document.querySelectorAll(".mark > title")) {
    told.set(title.parentElement, title.textContent);
    title.remove();
  }
  const NEAR = [[0, 0], [0, -3], [0, 3], [-3, 0], [3, 0]];
  const under = (x, y) => {
    for (const [dx, dy] of NEAR) {
      const mark = document.elementFromPoint(x + dx, y + dy)?.closest(".mark");
      if (mark && told.has(mark)) return mark;
    }
    return null;
  };
  const point = (event) => {
    const mark = event.target.closest?.("figure svg") && under(event.clientX, event.clientY);
    tip.hidden = !mark;
    if (!mark) return;
    const says = told.get(mark);
    tip.textContent = says.includes(": ") ? says : says + nearest(mark, event.clientX, event.clientY);
    const right = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
    tip.style.left = `${Math.max(8, right)}px`;
    tip.style.top = `${event.clientY + 18}px`;
  };
  addEventListener("pointermove", point);
  addEventListener("pointerdown", point);
  addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
})();
