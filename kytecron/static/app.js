// Behaviour of the pages, by data attributes (listed in docs/pages.md). Everything is delegated from the document,
// so that markup which htmx swaps in later works without being set up.
(() => {
  "use strict";
  const root = document.documentElement;
  const $ = (selector, from = document) => from.querySelector(selector);
  const $$ = (selector, from = document) => [...from.querySelectorAll(selector)];
  const on = (name, selector, handler, options) =>
    document.addEventListener(name, (event) => {
      const target = event.target instanceof Element && event.target.closest(selector);
      if (target) handler(event, target);
    }, options);
  const remember = (key, value) => {
    try {
      if (value === null) localStorage.removeItem(key);
      else localStorage.setItem(key, value);
    } catch {
      // Without storage the choice lasts for this page.
    }
  };
  const icon = (name) => {
    const href = $("svg.icon use").getAttribute("href").replace(/#.*/, `#${name}`);
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
    svg.setAttribute("class", "icon");
    svg.setAttribute("aria-hidden", "true");
    use.setAttribute("href", href);
    svg.append(use);
    return svg;
  };

  // ------------------------------------------------------------------ theme: system -> light -> dark
  on("click", "[data-theme-toggle]", () => {
    const next = { undefined: "light", light: "dark", dark: undefined }[root.dataset.theme];
    if (next) root.dataset.theme = next;
    else delete root.dataset.theme;
    remember("kytecron:theme", next ?? null);
    nameTheme();
  });
  function nameTheme() {
    const name = { light: "light", dark: "dark" }[root.dataset.theme] ?? "as the system";
    for (const button of $$("[data-theme-toggle]")) {
      button.setAttribute("aria-label", `Colour theme: ${name}`);
      button.title = `Colour theme: ${name}`;
    }
  }

  // ------------------------------------------------------------------ the menu of small screens
  function openMenu(open) {
    if (open) root.dataset.menu = "open";
    else delete root.dataset.menu;
    $("[data-menu-toggle]").setAttribute("aria-expanded", String(open));
    $(".scrim").hidden = !open;
    if (open) $("#sidebar a").focus();
  }
  on("click", "[data-menu-toggle]", () => openMenu(root.dataset.menu !== "open"));
  on("click", "[data-menu-close]", () => openMenu(false));
  on("keydown", "[data-menu=open] .sidebar", (event, sidebar) => {
    // While the menu covers the page, Tab stays inside it.
    if (event.key !== "Tab") return;
    const stops = $$("#sidebar :is(a, button, input, summary)").filter((e) => e.checkVisibility());
    const edge = event.shiftKey ? stops[0] : stops.at(-1);
    if (document.activeElement === edge) {
      event.preventDefault();
      (event.shiftKey ? stops.at(-1) : stops[0]).focus();
    }
  });

  // ------------------------------------------------------------------ drop-downs: details.menu
  function closeMenus(except) {
    for (const menu of $$("details.menu[open]")) if (!menu.contains(except)) menu.open = false;
  }
  document.addEventListener("click", (event) => closeMenus(event.target));
  on("click", ".menu-item", () => setTimeout(closeMenus)); // an entry that leaves the page where it is
  document.addEventListener("toggle", (event) => {
    const menu = event.target;
    if (!menu.matches?.("details.menu[open]")) return;
    closeMenus(menu);
    // Inside something that scrolls, an absolute panel would be clipped: place it in the window instead.
    if (!menu.closest(".table-wrap, .panel")) return;
    const panel = $(".menu-panel", menu);
    const box = menu.getBoundingClientRect();
    const below = innerHeight - box.bottom > panel.offsetHeight + 8;
    panel.style.position = "fixed";
    panel.style.right = "auto";
    panel.style.bottom = "auto";
    panel.style.left = `${Math.max(8, Math.min(box.right - panel.offsetWidth, innerWidth - panel.offsetWidth - 8))}px`;
    panel.style.top = `${below ? box.bottom + 4 : Math.max(8, box.top - panel.offsetHeight - 4)}px`;
  }, true);
  document.addEventListener("scroll", (event) => {
    if (event.target.contains?.($("details.menu[open]")) && event.target.closest?.(".table-wrap, .panel")) closeMenus(null);
  }, true);
  addEventListener("scroll", () => {
    const panel = $("details.menu[open] .menu-panel");
    if (panel?.style.position === "fixed") closeMenus(null);
  }, { passive: true });
  on("keydown", "details.menu[open]", (event, menu) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const items = $$(".menu-item", menu);
    const at = items.indexOf(document.activeElement);
    items[at < 0 ? (step > 0 ? 0 : items.length - 1) : (at + step + items.length) % items.length]?.focus();
  });

  // ------------------------------------------------------------------ keys
  let pendingG = 0;
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      const menu = $("details.menu[open]");
      if (menu) {
        menu.open = false;
        $("summary", menu).focus();
      } else if (root.dataset.menu === "open") {
        openMenu(false);
        $("[data-menu-toggle]").focus();
      }
      return;
    }
    // composedPath: the editor's shadow root hides what is really typed into.
    const typing = event.composedPath()[0].closest?.("input:not([type=checkbox], [type=radio]), textarea, select, [contenteditable=true]");
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || typing || $("dialog[open]")) return;
    if (Date.now() - pendingG < 1200) {
      pendingG = 0;
      const link = $(`[data-key="g ${CSS.escape(event.key)}"]`);
      if (link) {
        event.preventDefault();
        link.click();
        return;
      }
    }
    if (event.key === "g") pendingG = Date.now();
    else if (event.key === "?") help(event);
    else if (event.key === "/") {
      const search = $("main [data-search]") ?? $("[data-search]");
      if (!search) return;
      event.preventDefault();
      if (!search.checkVisibility({ visibilityProperty: true })) openMenu(true);
      search.focus();
      search.select();
    } else {
      const single = event.key.length === 1 && $(`[data-key="${CSS.escape(event.key)}"]`);
      if (single) {
        event.preventDefault();
        single.click();
      }
    }
  });
  function help(event) {
    const dialog = $("#help");
    if (!dialog) return;
    event.preventDefault();
    openMenu(false);
    dialog.showModal();
  }
  on("click", "[data-help]", help);
  document.addEventListener("click", (event) => {
    // A click on the backdrop lands on the dialog itself, outside its box.
    const dialog = event.target;
    if (!(dialog instanceof HTMLDialogElement)) return;
    const box = dialog.getBoundingClientRect();
    const inside = event.clientX >= box.left && event.clientX <= box.right && event.clientY >= box.top && event.clientY <= box.bottom;
    if (!inside) dialog.close("cancel");
  });

  // ------------------------------------------------------------------ times
  // Local time as 2026-11-23 22:39:48 CET, the order in which UTC times are written everywhere else.
  const clock = new Intl.DateTimeFormat("en-GB", {
    year: "numeric", month: "2-digit", day: "2-digit", hour: "2-digit", minute: "2-digit", second: "2-digit",
    hourCycle: "h23", timeZoneName: "short",
  });
  function absolute(when) {
    const part = Object.fromEntries(clock.formatToParts(when).map(({ type, value }) => [type, value]));
    return `${part.year}-${part.month}-${part.day} ${part.hour}:${part.minute}:${part.second} ${part.timeZoneName}`;
  }
  const two = (n) => String(n).padStart(2, "0");
  // Two units at most: "42 s", "4 min 12 s", "3 h 05 min", "2 d 4 h".
  function span(seconds) {
    const s = Math.floor(seconds);
    if (s < 60) return `${s} s`;
    if (s < 3600) return `${Math.floor(s / 60)} min ${two(s % 60)} s`;
    if (s < 86400) return `${Math.floor(s / 3600)} h ${two(Math.floor((s % 3600) / 60))} min`;
    return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
  }
  // One unit, for the past: "12 s", "3 min", "5 h", "12 d", "4 months".
  function rough(seconds) {
    const s = Math.floor(seconds);
    if (s < 60) return `${s} s`;
    if (s < 3600) return `${Math.floor(s / 60)} min`;
    if (s < 86400) return `${Math.floor(s / 3600)} h`;
    if (s < 60 * 86400) return `${Math.floor(s / 86400)} d`;
    if (s < 730 * 86400) return `${Math.floor(s / (30.44 * 86400))} months`;
    return `${Math.floor(s / (365.25 * 86400))} years`;
  }
  // The server's clock, as far as the page knows it: countdowns must not depend on a wrong clock of the viewer.
  let skew = 0;
  const now = () => Date.now() + skew;
  function showTime(element, at) {
    const when = Date.parse(element.dateTime);
    if (Number.isNaN(when)) return;
    const past = (at - when) / 1000;
    let text;
    if ("relative" in element.dataset) text = past >= 0 ? (past < 5 ? "just now" : `${rough(past)} ago`) : `in ${rough(-past)}`;
    else if ("countdown" in element.dataset) text = past > 0 ? "due" : `in ${span(-past)}`;
    else if ("elapsed" in element.dataset) text = span(Math.max(0, past));
    else text = absolute(when);
    if (element.textContent !== text) element.textContent = text;
    const utc = new Date(when).toISOString().slice(0, 19).replace("T", " ") + " UTC";
    // Beside another clock: the same time is not written twice.
    if ("beside" in element.dataset) element.hidden = -new Date(when).getTimezoneOffset() === Number(element.dataset.beside);
    const title = "local" in element.dataset || absolute(when) === utc ? utc : `${absolute(when)} (${utc})`;
    if (element.title !== title) element.title = title;
  }
  const showTimes = (from = document) => {
    const at = now();
    for (const element of $$("time[datetime]:is([data-relative], [data-countdown], [data-elapsed], [data-local])", from)) showTime(element, at);
  };

  // ------------------------------------------------------------------ logs that follow
  // A [data-follow] box stays at its end until the reader scrolls up, and again once they return to the end.
  const atEnd = (box) => box.scrollHeight - box.scrollTop - box.clientHeight < 24;
  const left = new WeakSet();
  document.addEventListener("scroll", (event) => {
    const box = event.target;
    if (!box.matches?.("[data-follow]")) return;
    if (atEnd(box)) left.delete(box);
    else if (box.kyteHeight === box.scrollHeight) left.add(box); // not a growth, so it was the reader
    showEnd(box);
  }, true);
  function showEnd(box) {
    for (const button of $$(`[data-follow-end="#${CSS.escape(box.id)}"]`)) button.hidden = !left.has(box);
  }
  function follow() {
    for (const box of $$("[data-follow]")) {
      if (!left.has(box) && !atEnd(box)) box.scrollTop = box.scrollHeight;
      box.kyteHeight = box.scrollHeight;
      showEnd(box);
    }
  }
  on("click", "[data-follow-end]", (event, button) => {
    const box = $(button.dataset.followEnd);
    left.delete(box);
    box.scrollTop = box.scrollHeight;
    button.hidden = true;
  });
  on("click", "[data-wrap-toggle]", (event, button) => {
    const off = root.dataset.logWrap === "off";
    if (off) delete root.dataset.logWrap;
    else root.dataset.logWrap = "off";
    remember("kytecron:log-wrap", off ? null : "off");
    button.setAttribute("aria-pressed", String(off));
  });

  // ------------------------------------------------------------------ confirmation
  // data-confirm="question" on a form, a submit button, a link or an element with hx-*; capturing, so that it comes before htmx.
  const agreed = new WeakSet();
  function ask(event, element, proceed) {
    if (agreed.delete(element)) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    closeMenus(null);
    const dialog = $("#confirm");
    const { confirm: text, confirmTitle, confirmOk, confirmTone } = element.dataset;
    $("#confirm-title").textContent = confirmTitle || "Are you sure?";
    $("#confirm-text").textContent = text;
    const ok = $("#confirm-ok");
    ok.textContent = confirmOk || "Continue";
    ok.className = confirmTone === "danger" ? "btn btn-danger" : "btn btn-primary";
    dialog.returnValue = "cancel";
    dialog.onclose = () => {
      if (dialog.returnValue !== "ok" || !element.isConnected) return;
      agreed.add(element);
      proceed();
      agreed.delete(element);
    };
    dialog.showModal();
  }
  document.addEventListener("submit", (event) => {
    const form = event.target;
    const source = event.submitter?.dataset.confirm ? event.submitter : form.dataset.confirm ? form : null;
    if (source) ask(event, source, () => form.requestSubmit(event.submitter));
  }, true);
  on("click", "[data-confirm]:not(form)", (event, element) => {
    if (element.form && element.type === "submit") return; // asked at submit, after validation
    ask(event, element, () => element.click());
  }, true);

  // ------------------------------------------------------------------ unsaved changes: form[data-guard]
  const changed = (form) => {
    if (form.hasAttribute("data-dirty")) return true; // set by the server on a form that came back with errors
    const state = new URLSearchParams(new FormData(form)).toString();
    return form.kyteInitial !== undefined && form.kyteInitial !== state;
  };
  const guard = () => {
    for (const form of $$("form[data-guard]"))
      form.kyteInitial ??= new URLSearchParams(new FormData(form)).toString();
  };
  let leaving = false;
  document.addEventListener("submit", (event) => {
    // Runs last (bubbling at the document): a submit that was prevented is either htmx's or cancelled.
    if (event.target.matches("form[data-guard]") && !event.defaultPrevented) leaving = true;
  });
  addEventListener("pageshow", () => { leaving = false; });
  addEventListener("beforeunload", (event) => {
    if (!leaving && $$("form[data-guard]").some(changed)) event.preventDefault();
  });

  // ------------------------------------------------------------------ toasts
  // HX-Trigger: {"kytecron:toast": {"message": "Triggered", "tone": "success"}}; a plain string works too.
  function toast(message, tone = "info") {
    const box = $("#toasts");
    if (!box || !message) return;
    for (const same of $$(".toast", box)) if (same.dataset.message === message) same.remove();
    const element = document.createElement("div");
    element.className = `toast toast-${tone}`;
    if (tone === "error") element.setAttribute("role", "alert");
    element.dataset.message = message;
    const text = document.createElement("p");
    text.textContent = message;
    const close = document.createElement("button");
    close.type = "button";
    close.className = "btn btn-ghost btn-icon btn-sm";
    close.setAttribute("aria-label", "Dismiss");
    close.append(icon("x"));
    close.addEventListener("click", () => element.remove());
    element.append(text, close);
    box.append(element);
    while (box.children.length > 4) box.firstElementChild.remove();
    if (tone === "error") return; // stays until it is dismissed
    let timer = setTimeout(() => element.remove(), 6000);
    element.addEventListener("pointerenter", () => clearTimeout(timer));
    element.addEventListener("pointerleave", () => { timer = setTimeout(() => element.remove(), 3000); });
  }
  document.addEventListener("kytecron:toast", ({ detail }) => toast(detail.message ?? detail.value, detail.tone));

  // ------------------------------------------------------------------ copy
  on("click", "[data-copy]", async (event, button) => {
    const text = button.dataset.copy;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // Plain http has no clipboard API.
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
      button.focus();
    }
    const use = $("use", button);
    if (use) {
      const href = use.getAttribute("href");
      use.setAttribute("href", href.replace(/#copy$/, "#check"));
      setTimeout(() => use.setAttribute("href", href.replace(/#check$/, "#copy")), 1500);
    }
    toast("Copied", "success");
  });

  // ------------------------------------------------------------------ lists: select all, submit on change
  on("change", "[data-check-all]", (event, all) => {
    for (const box of $$(`input[type=checkbox][name="${CSS.escape(all.dataset.checkAll)}"]`, all.closest("form, table"))) box.checked = all.checked;
    countChecked();
  });
  on("change", "td input[type=checkbox]", () => countChecked());
  function countChecked() {
    // [data-checked-count="ids"] shows how many are checked; [data-checked-show="ids"] appears once one is.
    for (const out of $$("[data-checked-count], [data-checked-show]")) {
      const name = out.dataset.checkedCount ?? out.dataset.checkedShow;
      const n = $$(`input[type=checkbox][name="${CSS.escape(name)}"]:checked`).length;
      if ("checkedCount" in out.dataset) out.textContent = n;
      else out.hidden = n === 0;
    }
    for (const all of $$("[data-check-all]")) {
      const boxes = $$(`input[type=checkbox][name="${CSS.escape(all.dataset.checkAll)}"]`, all.closest("form, table"));
      const n = boxes.filter((box) => box.checked).length;
      all.checked = n > 0 && n === boxes.length;
      all.indeterminate = n > 0 && n < boxes.length;
    }
  }
  on("change", "[data-submit-on-change]", (event, element) => (element.form ?? element).requestSubmit());

  // ------------------------------------------------------------------ fields that depend on a choice
  // [data-show-if="schedule_type=cron|daily"] is shown, and its controls are sent, only while that choice stands.
  function showFields(from = document) {
    for (const part of $$("[data-show-if]", from)) {
      const [name, wanted] = part.dataset.showIf.split("=");
      const form = part.closest("form");
      if (!form) continue;
      const shown = wanted.split("|").includes(new FormData(form).get(name) ?? "");
      part.hidden = !shown;
      for (const control of $$("input, select, textarea", part)) control.disabled = !shown;
    }
  }
  document.addEventListener("change", (event) => {
    const form = event.target.form;
    if (form && $("[data-show-if]", form)) showFields(form);
  });

  // ------------------------------------------------------------------ htmx
  document.addEventListener("htmx:config:request", ({ detail }) => {
    const token = $("meta[name=csrf-token]")?.content;
    if (token) detail.ctx.request.headers["X-CSRFToken"] = token;
  });
  const polls = (ctx) => ctx?.sourceEvent?.type === "every";
  document.addEventListener("htmx:before:request", (event) => {
    // Nobody looks at a hidden tab; it catches up when it is shown.
    if (document.hidden && polls(event.detail.ctx)) event.preventDefault();
  });
  document.addEventListener("htmx:after:request", (event) => {
    const { ctx } = event.detail;
    const { status } = ctx.response;
    offline(status === 502 || status === 503 || status === 504);
    setClock(ctx.response.headers);
    if (status >= 400 && !ctx.text.trim()) ctx.swap = "none"; // a refusal without markup must not empty its target
    if (status >= 500 && polls(ctx)) ctx.hx.trigger = null; // the banner says it once; a toast would come back each time
    if (ctx.response.headers.get("HX-Redirect") || ctx.response.headers.get("HX-Refresh")) leaving = true;
    // A whole page where a part was asked for: the session ended and the answer is the sign-in page.
    if (status < 400 && ctx.target !== document.body && /^\s*<!doctype/i.test(ctx.text)) {
      event.preventDefault();
      leaving = true;
      location.reload();
    }
  });
  document.addEventListener("htmx:response:error", ({ detail: { ctx } }) => {
    const { status, headers } = ctx.response;
    if (polls(ctx) && status >= 500) return offline(true);
    if (status === 422 || status === 409 || headers.get("HX-Trigger") || headers.get("HX-Redirect")) return;
    toast({
      400: "The form is out of date. Reload the page and try again.",
      401: "Your session has ended. Sign in again.",
      403: "Your role does not allow this.",
      404: "This is no longer there. It may have been deleted.",
      413: "That is too large.",
      429: "Too many requests. Wait a moment and try again.",
    }[status] ?? `The server could not do this (error ${status}). Nothing was changed that you do not see.`, "error");
  });
  document.addEventListener("htmx:error", ({ detail }) => {
    if (detail.ctx && !detail.ctx.response) offline(true);
  });
  function offline(is) {
    const banner = $("#offline");
    if (banner) banner.hidden = !is;
  }
  function setClock(headers) {
    const date = Date.parse(headers?.get("Date") ?? "");
    // The header has whole seconds and travelled a moment: only a real difference counts.
    if (!Number.isNaN(date)) skew = Math.abs(date - Date.now()) > 3000 ? date - Date.now() : 0;
  }
  const refresh = () => {
    showTimes();
    follow();
    showFields(); // before guard: what it disables is not part of the form
    guard();
    countChecked();
  };
  document.addEventListener("htmx:after:swap", refresh);
  document.addEventListener("htmx:after:settle", refresh);

  nameTheme();
  refresh();
  for (const button of $$("[data-wrap-toggle]")) button.setAttribute("aria-pressed", String(root.dataset.logWrap !== "off"));
  setInterval(() => showTimes(), 1000);
  document.addEventListener("visibilitychange", () => { if (!document.hidden) showTimes(); });
})();
