// The numbers under the pointer; everything opens before it is printed.
const short = v => { for (const [s, l] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]]) if (Math.abs(v) >= s)
  return (v / s).toPrecision(4) + " " + l; return String(v); };
for (const figure of document.querySelectorAll(".chart")) {
  const data = JSON.parse(figure.querySelector("script").textContent), svg = figure.querySelector("svg");
  const line = figure.querySelector(".pointer"), tip = figure.appendChild(document.createElement("div"));
  tip.className = "tip";
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
    const at = (event.clientX - box.left) * scale, x = data.a + (at - data.l) / data.w * (data.b - data.a);
    if (x < data.a || x > data.b) return hide();
    tip.replaceChildren(Object.assign(document.createElement("div"), {textContent: short(Math.round(x)) + " " + data.x}));
    for (const s of data.s) {
      let low = 0, high = s.x.length - 1;
      while (low < high) { const mid = (low + high) >> 1; if (s.x[mid] < x) low = mid + 1; else high = mid; }
      if (low && x - s.x[low - 1] < s.x[low] - x) low--;
      const row = document.createElement("div"), dot = document.createElement("i");
      dot.style.background = s.c;
      row.append(dot, s.n + ": " + s.y[low].toLocaleString("en", {maximumSignificantDigits: 6}));
      tip.append(row);
    }
    line.setAttribute("x1", at); line.setAttribute("x2", at); line.style.opacity = .5;
    tip.style.display = "block";
    const left = event.clientX - box.left + 16;
    tip.style.left = Math.min(left, left > box.width / 2 ? left - 32 - tip.offsetWidth : left) + "px";
  });
  const hide = () => { tip.style.display = "none"; line.style.opacity = 0; };
  svg.addEventListener("pointerleave", hide);
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(d => d.open = true));
