// The code editor: turns <textarea data-editor="python" data-check-url="/…"> into CodeMirror, progressively.
//
// Content Security Policy: CodeMirror writes its rules at run time. In the document it would need a <style> element, and
// so a nonce in style-src (EditorView.cspNonce). Inside a shadow root it uses a constructed stylesheet instead, which no
// policy forbids. So the editor lives in an open shadow root, and the pages keep style-src 'self' without any nonce.
// Colours and fonts come through: custom properties cross the boundary, and the theme follows the page's.
//
// The textarea stays the form's field: each change is written back to it, with an input event, so plain submission,
// unsaved-changes guards and HTMX all see it. Tab indents; Escape and then Tab leaves the editor.
import { autocompletion } from "@codemirror/autocomplete";
import { indentWithTab } from "@codemirror/commands";
import { python, pythonLanguage } from "@codemirror/lang-python";
import { HighlightStyle, indentUnit, syntaxHighlighting } from "@codemirror/language";
import { forceLinting, lintGutter, linter, setDiagnostics } from "@codemirror/lint";
import { EditorState } from "@codemirror/state";
import { EditorView, keymap } from "@codemirror/view";
import { tags as t } from "@lezer/highlight";
import { basicSetup } from "codemirror";

const colours = HighlightStyle.define([
  { tag: [t.keyword, t.operatorKeyword, t.controlKeyword, t.definitionKeyword, t.moduleKeyword], color: "var(--hl-keyword)" },
  { tag: [t.string, t.special(t.string), t.docString], color: "var(--hl-string)" },
  { tag: [t.number, t.bool, t.null, t.escape], color: "var(--hl-number)" },
  { tag: [t.comment], color: "var(--hl-comment)" },
  { tag: [t.function(t.variableName), t.function(t.definition(t.variableName)), t.function(t.propertyName)], color: "var(--hl-name)" },
  { tag: [t.className, t.definition(t.className), t.meta], color: "var(--hl-class)" },
  { tag: [t.self, t.standard(t.variableName)], color: "var(--hl-builtin)" },
  { tag: [t.operator, t.punctuation], color: "var(--hl-operator)" },
  { tag: t.invalid, color: "var(--hl-error)" },
]);

const theme = EditorView.theme({
  "&": { fontSize: "0.8125rem", color: "var(--text)", backgroundColor: "transparent", minHeight: "18rem", maxHeight: "72vh", borderRadius: "inherit" },
  "&.cm-focused": { outline: "none" },
  "@media (pointer: coarse)": { "&": { fontSize: "1rem" } },
  ".cm-scroller": { fontFamily: "var(--mono)", lineHeight: "1.55", overflow: "auto" },
  ".cm-content": { caretColor: "var(--text)", padding: "0.5rem 0" },
  ".cm-cursor, .cm-dropCursor": { borderLeftColor: "var(--text)" },
  ".cm-gutters": { backgroundColor: "transparent", color: "var(--text-3)", border: "none", paddingLeft: "0.25rem" },
  ".cm-lineNumbers .cm-gutterElement": { minWidth: "2.25rem" },
  ".cm-activeLine": { backgroundColor: "color-mix(in srgb, var(--text) 4%, transparent)" },
  ".cm-activeLineGutter": { backgroundColor: "transparent", color: "var(--text)" },
  "& > .cm-scroller > .cm-selectionLayer .cm-selectionBackground, &.cm-focused > .cm-scroller > .cm-selectionLayer .cm-selectionBackground": { backgroundColor: "light-dark(#cfdaff, #2f417f)" },
  ".cm-selectionMatch": { backgroundColor: "light-dark(#e4ebff, #232f57)" },
  ".cm-searchMatch": { backgroundColor: "var(--amber-soft)", outline: "1px solid var(--amber-solid)" },
  "&.cm-focused .cm-matchingBracket": { backgroundColor: "color-mix(in srgb, var(--accent) 22%, transparent)" },
  ".cm-foldPlaceholder": { backgroundColor: "var(--surface-3)", border: "none", color: "var(--text-2)" },
  ".cm-tooltip": { backgroundColor: "var(--raised)", color: "var(--text)", border: "1px solid var(--border-strong)", borderRadius: "6px", boxShadow: "var(--shadow-2)", overflow: "hidden" },
  ".cm-tooltip-autocomplete > ul > li[aria-selected]": { backgroundColor: "var(--accent-soft)", color: "var(--text)" },
  ".cm-tooltip.cm-tooltip-autocomplete > ul": { fontFamily: "var(--mono)", padding: "0.25rem" },
  ".cm-tooltip.cm-tooltip-autocomplete > ul > li": { padding: "0.1rem 0.5rem", borderRadius: "4px" },
  ".cm-completionDetail": { color: "var(--text-3)", fontStyle: "normal" },
  ".cm-diagnostic": { padding: "0.35rem 0.6rem", fontFamily: "var(--sans)" },
  ".cm-diagnostic-error": { borderLeft: "3px solid var(--red-solid)" },
  ".cm-panels": { backgroundColor: "var(--surface-2)", color: "var(--text)", fontFamily: "var(--sans)" },
  ".cm-panels.cm-panels-bottom": { borderTop: "1px solid var(--border)" },
  ".cm-panels.cm-panels-top": { borderBottom: "1px solid var(--border)" },
  ".cm-textfield": { backgroundColor: "var(--surface)", border: "1px solid var(--control-border)", borderRadius: "4px" },
  ".cm-button": { background: "var(--surface)", border: "1px solid var(--border-strong)", borderRadius: "4px", color: "inherit" },
});

// What a job has at hand on self; the rest is Python's own completion.
const jobMembers = [
  ["log", "(message)", "function"], ["progress", "(percent, note=\"\")", "function"], ["heartbeat", "(seconds=300)", "function"],
  ["job", "id, name, version, parameters", "property"], ["execution", "id, scheduled_time, attempt", "property"],
  ["state", "kept from run to run", "property"], ["secrets", "granted ones", "property"], ["api", "other jobs", "property"],
].map(([label, detail, type]) => ({ label, detail, type }));
function completeSelf(context) {
  const before = context.matchBefore(/\bself\.\w*/);
  return before && { from: before.from + "self.".length, options: jobMembers, validFor: /^\w*$/ };
}

/** The problems of `{"problems": [{line, column, message}]}` as diagnostics; positions outside the text are moved inside. */
function diagnostics(doc, problems) {
  return problems.map(({ line, column, message }) => {
    const at = doc.line(Math.min(Math.max(line ?? 1, 1), doc.lines));
    const from = Math.min(at.from + Math.max((column ?? 1) - 1, 0), at.to);
    const word = /^\w+/.exec(at.text.slice(from - at.from))?.[0].length ?? 0;
    return { from, to: Math.min(from + Math.max(word, 1), at.to), severity: "error", message, line: at.number };
  });
}

function checker(url, report) {
  return linter(async (view) => {
    const asked = view.state.doc;
    try {
      const answer = await fetch(url, {
        method: "POST",
        credentials: "same-origin",
        headers: {
          "Content-Type": "application/json", "Accept": "application/json",
          "X-CSRFToken": document.querySelector("meta[name=csrf-token]")?.content ?? "",
        },
        body: JSON.stringify({ code: asked.toString() }),
      });
      if (!answer.ok && answer.status !== 422) return []; // 422 has its reasons with it
      const found = diagnostics(asked, (await answer.json()).problems ?? []);
      report(found);
      return found;
    } catch {
      return []; // No answer, no verdict: saving checks again.
    }
  }, { delay: 500 });
}

/** The same problems as text under the editor, for keyboards, screen readers and touch; each leads to its line. */
function listProblems(list, view, found) {
  list.replaceChildren(...found.map((problem) => {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = `Line ${problem.line}: ${problem.message}`;
    button.addEventListener("click", () => {
      const anchor = Math.min(problem.from, view().state.doc.length);
      view().dispatch({ selection: { anchor }, scrollIntoView: true });
      view().focus();
    });
    item.append(button);
    return item;
  }));
}

const editors = new Map();

function setUp(textarea) {
  const label = textarea.labels?.[0];
  const readOnly = textarea.hasAttribute("data-readonly") || textarea.readOnly || textarea.disabled;
  const checked = textarea.dataset.checkUrl && !readOnly;
  const host = document.createElement("div");
  host.className = "editor";
  const problems = document.createElement("ul");
  problems.className = "editor-problems";
  problems.setAttribute("aria-live", "polite");
  textarea.after(host, problems);
  const root = host.attachShadow({ mode: "open", delegatesFocus: true });

  let view;
  const extensions = [
    ...(checked ? [lintGutter(), checker(textarea.dataset.checkUrl, (found) => listProblems(problems, () => view, found))] : []),
    basicSetup, keymap.of([indentWithTab]), indentUnit.of("    "), EditorState.tabSize.of(4),
    python(), pythonLanguage.data.of({ autocomplete: completeSelf }), autocompletion({ icons: false }),
    syntaxHighlighting(colours), theme,
    EditorState.readOnly.of(readOnly),
    EditorView.contentAttributes.of({ tabindex: "0", "aria-label": `${label?.textContent.trim() || "Code"}. Escape, then Tab leaves the editor.` }),
    EditorView.updateListener.of((update) => {
      if (!update.docChanged) return;
      textarea.value = update.state.doc.toString();
      textarea.dispatchEvent(new Event("input", { bubbles: true }));
    }),
  ];
  view = new EditorView({ doc: textarea.value, extensions, parent: root, root });
  editors.set(textarea, view);

  textarea.hidden = true;
  textarea.required = false; // a hidden control cannot show the browser's own message; the server checks
  label?.addEventListener("click", () => view.focus());
  textarea.form?.addEventListener("reset", () => setTimeout(() => sync(textarea, view)));
  if (checked) forceLinting(view);
}

/** Takes over what was written into the textarea from outside (a reset, a swap that kept the element). */
function sync(textarea, view) {
  const text = textarea.value.replace(/\r\n?/g, "\n");
  if (text === view.state.doc.toString()) return;
  view.dispatch({ changes: { from: 0, to: view.state.doc.length, insert: text } });
  view.dispatch(setDiagnostics(view.state, []));
}

function scan() {
  for (const [textarea, view] of editors) {
    if (textarea.isConnected) sync(textarea, view);
    else {
      view.destroy();
      editors.delete(textarea);
    }
  }
  for (const textarea of document.querySelectorAll("textarea[data-editor]")) if (!editors.has(textarea)) setUp(textarea);
}

scan();
document.addEventListener("htmx:after:settle", scan);
