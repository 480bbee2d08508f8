// Rebuilds everything under kytecron/static that other people wrote: htmx, the editor bundle, the icon sprite, the font.
//   npm ci && npm run build
// The output is deterministic: the same lockfile gives the same bytes. static/vendored.json names each file's source,
// version, licence and SHA-256; tests/web/test_static_assets.py holds the files to it.
import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import subsetFont from "subset-font";

const here = dirname(fileURLToPath(import.meta.url));
const modules = join(here, "node_modules");
const out = join(here, "..", "kytecron", "static");
const version = (name) => JSON.parse(readFileSync(join(modules, name, "package.json"), "utf8")).version;
const sha256 = (content) => createHash("sha256").update(content).digest("hex");
// Our own files that go into one: a test tells when they have changed since.
const madeFrom = (...files) => Object.fromEntries(files.map((file) => [file, sha256(readFileSync(join(here, file)))]));
const entries = [];

function vendor(file, content, source, licence, licenceText) {
  writeFileSync(join(out, file), content);
  const licenceFile = `licences/${file}.txt`;
  writeFileSync(join(out, licenceFile), licenceText.trim() + "\n");
  entries.push({ file, ...source, licence, licence_file: licenceFile, sha256: sha256(content) });
}

mkdirSync(join(out, "licences"), { recursive: true });

vendor("htmx.min.js", readFileSync(join(modules, "htmx.org/dist/htmx.min.js")), { name: "htmx.org", version: version("htmx.org") }, "0BSD",
  readFileSync(join(modules, "htmx.org/LICENSE"), "utf8"));

// Icons: one sprite of the few that are used; size and stroke come from the stylesheet.
const symbols = JSON.parse(readFileSync(join(here, "icons.json"), "utf8")).map((name) => {
  const svg = readFileSync(join(modules, `lucide-static/icons/${name}.svg`), "utf8");
  const body = svg.replace(/<!--.*?-->/gs, "").match(/<svg[^>]*>(.*)<\/svg>/s)[1].replace(/\s*\n\s*/g, "").replace(/ \/>/g, "/>");
  return `<symbol id="${name}" viewBox="0 0 24 24">${body}</symbol>`;
});
vendor("icons.svg", `<svg xmlns="http://www.w3.org/2000/svg">\n${symbols.join("\n")}\n</svg>\n`,
  { name: "lucide-static", version: version("lucide-static"), made_from: madeFrom("icons.json") }, "ISC AND MIT",
  readFileSync(join(modules, "lucide-static/LICENSE"), "utf8"));

// The font: Latin-1, the upright face, the weights in use. Other scripts fall back to the system's font.
const letters = [[0x20, 0x7e], [0xa0, 0xff]].flatMap(([from, to]) => Array.from({ length: to - from + 1 }, (_, i) => String.fromCodePoint(from + i)));
const inter = "@fontsource-variable/inter";
const font = await subsetFont(readFileSync(join(modules, inter, "files/inter-latin-wght-normal.woff2")), letters.join("") + "–—‘’“”•…€→←↑↓−×≥≤", {
  targetFormat: "woff2",
  variationAxes: { wght: { min: 400, max: 650, default: 400 } },
});
vendor("inter.woff2", font, { name: inter, version: version(inter) }, "OFL-1.1", readFileSync(join(modules, inter, "LICENSE"), "utf8"));

// The editor: CodeMirror and what it needs, in one file.
const { outputFiles, metafile } = await build({
  entryPoints: [join(here, "src/editor.js")],
  bundle: true, minify: true, format: "iife", target: "es2022", legalComments: "none", charset: "utf8",
  write: false, metafile: true, absWorkingDir: here,
});
const bundled = [...new Set(Object.keys(metafile.inputs).map((path) => path.match(/node_modules\/((?:@[^/]+\/)?[^/]+)/)?.[1]).filter(Boolean))].sort();
vendor("editor.js", outputFiles[0].contents,
  { name: "codemirror", version: version("codemirror"), made_from: madeFrom("src/editor.js"), packages: Object.fromEntries(bundled.map((name) => [name, version(name)])) }, "MIT",
  bundled.map((name) => `${name} ${version(name)}\n\n${readFileSync(join(modules, name, "LICENSE"), "utf8").trim()}`).join("\n\n---\n\n"));

writeFileSync(join(out, "vendored.json"), JSON.stringify(entries, null, 2) + "\n");
