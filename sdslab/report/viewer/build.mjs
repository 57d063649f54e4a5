// Bundles viewer.mjs with three.js into ../viewer.js: npm ci && npm run build
import { readFile, writeFile } from "node:fs/promises";
import { build } from "esbuild";

const { outputFiles } = await build({
  entryPoints: ["viewer.mjs"],
  absWorkingDir: import.meta.dirname,
  bundle: true,
  minify: true,
  format: "iife",
  target: "es2022",
  charset: "ascii", // the page says UTF-8, but a copy of it may lose that
  legalComments: "none", // whose text stands in front, whole
  write: false,
});
const licence = await readFile(
  new URL("node_modules/three/LICENSE", import.meta.url),
  "utf8",
);
const text = `/*! three.js\n\n${licence.trim()}\n*/\n${outputFiles[0].text}`;
// It stands inline in a page: nothing in it may end the script or begin another.
if (/<\/script|<script|<!--/i.test(text)) throw new Error("the bundle holds a script tag");
await writeFile(new URL("../viewer.js", import.meta.url), text);
console.log(`viewer.js: ${(text.length / 1024).toFixed(0)} KB`);
