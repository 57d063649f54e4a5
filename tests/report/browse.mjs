// Opens a page from disk in headless Chromium and does what it is told.
//
// Usage: node browse.mjs PAGE.html STEPS.json FOLDER   (after npm ci in tests/)
//
// STEPS.json: {"width", "height", optionally "webgl": false, "dark": true, "still": true,
//   "steps": [[WHAT, ...]]} where WHAT is "shot" NAME [SELECTOR], "key" KEY, "drag" DX DY,
//   "click" SELECTOR or "evaluate" EXPRESSION. Screenshots come into FOLDER.
// Prints {"errors": [...], "requests": [...], "values": [...]}: console errors, what was asked for
// besides the page itself and what lies in it, and the values of the expressions.
import { readFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { withBrowser } from "../browser.mjs";

const [file, stepsFile, folder] = process.argv.slice(2);
const { width, height, webgl = true, dark = false, still = false, steps } = JSON.parse(
  await readFile(stepsFile),
);
const url = pathToFileURL(resolve(file)).href;
const options = {
  viewport: { width, height },
  colorScheme: dark ? "dark" : "light",
  reducedMotion: still ? "reduce" : "no-preference",
  args: webgl ? [] : ["--disable-gpu", "--disable-3d-apis"],
};

await withBrowser(options, async (browser) => {
  const page = await browser.newPage();
  page.setDefaultTimeout(120000); // software rendering on a busy machine takes its time
  const errors = [];
  const requests = [];
  const values = [];
  page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
  page.on("pageerror", (error) => errors.push(String(error)));
  page.on("dialog", (dialog) => {
    errors.push(`dialog: ${dialog.message()}`);
    return dialog.dismiss();
  });
  page.on("request", (request) => {
    const local = request.url() === url || /^(data|blob):/.test(request.url());
    if (!local) requests.push(request.url());
  });
  await page.goto(url);
  const view = page.locator("#view[data-state]");
  if (await view.count()) {
    await page.waitForSelector('#view[data-drawn], #view[data-state="failed"]', { timeout: 60000 });
  }
  for (const [what, ...rest] of steps) {
    if (what === "shot") {
      const [name, selector] = rest;
      const path = join(folder, name);
      await page.waitForTimeout(800); // what turns comes to rest
      if (selector) await page.locator(selector).screenshot({ path });
      else await page.screenshot({ path, fullPage: true });
    } else if (what === "key") {
      await page.keyboard.press(rest[0]);
    } else if (what === "click") {
      await page.click(rest[0]);
    } else if (what === "drag") {
      const box = await page.locator("canvas").boundingBox();
      const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
      await page.mouse.move(x, y);
      await page.mouse.down();
      await page.mouse.move(x + rest[0], y + rest[1], { steps: 5 });
      await page.mouse.up();
    } else {
      values.push(await page.evaluate(rest[0]));
    }
  }
  console.log(JSON.stringify({ errors, requests, values }));
});
