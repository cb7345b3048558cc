/* Live refresh, filters that apply themselves, and the theme. Every page works without it. */
(() => {
  "use strict";
  const PERIOD = 2000, LONGEST = 30000;
  const live = document.getElementById("live");
  const button = document.getElementById("live-button");
  const word = document.getElementById("live-word");
  const form = document.querySelector("form[data-auto]");
  const here = new URLSearchParams(location.search);
  const paged = here.has("after") || here.has("before");
  let on = !paged, delay = PERIOD, seen = null;

  const held = () =>
    live.contains(document.activeElement) ||
    live.querySelector("[data-hold]:hover") !== null ||
    String(getSelection()) !== "";

  const say = (text, state) => {
    if (word.textContent !== text) word.textContent = text;
    button.dataset.state = state;
    button.setAttribute("aria-pressed", String(on));
  };

  const look = async () => {
    if (!on || document.hidden) return;
    if (held()) return say("Held", "held");
    try {
      const reply = await fetch(location.href, { headers: { "Fluxgate-Live": "1" }, redirect: "error" });
      if (!reply.ok) throw new Error(reply.status);
      const text = await reply.text();
      delay = PERIOD;
      if (!on || held()) return;
      if (live.querySelector(".empty") && !text.includes('class="empty"')) return location.reload();
      if (text !== seen) live.innerHTML = seen = text;
      say("Live", "live");
    } catch {
      delay = Math.min(delay * 2, LONGEST);
      say("Not reached", "lost");
    }
  };

  const loop = async () => {
    await look();
    setTimeout(loop, delay);
  };

  if (live && button) {
    button.hidden = false;
    say(on ? "Live" : "Paused", on ? "live" : "off");
    button.addEventListener("click", () => {
      if (paged) return location.assign(document.querySelector("[aria-current=page]").href);
      on = !on;
      say(on ? "Live" : "Paused", on ? "live" : "off");
    });
    setTimeout(loop, PERIOD);
  }

  if (form) {
    form.addEventListener("change", (event) => {
      if (event.target.type === "checkbox") form.requestSubmit();
    });
    form.addEventListener("formdata", ({ formData }) => {
      for (const key of [...formData.keys()]) if (formData.get(key) === "") formData.delete(key);
    });
  }

  const theme = document.getElementById("theme");
  const root = document.documentElement;
  const dark = () =>
    root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const name = () => { theme.textContent = dark() ? "Light" : "Dark"; };
  theme.hidden = false;
  name();
  theme.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    const path = new URL("..", document.querySelector("link[rel=stylesheet]").href).pathname;
    document.cookie = `fluxgate_theme=${root.dataset.theme}; path=${path}; max-age=31536000; samesite=lax`;
    name();
  });
})();
