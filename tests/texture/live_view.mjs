// Works the page of --live as a person does: headless Chromium, software rendering.
//
// Usage: node live_view.mjs URL   (after npm ci in tests/)
//
// Reads commands from stdin, a line each, and answers each with a line of JSON on stdout:
//   status        the text above the controls
//   pause, step, save      tick "Paused", press "Step" or "Save"
//   light NAME    choose a light
//   turn          drag the object
//   look FILE     save what the page shows as FILE
//   leave         close the browser and end
// A console error of the page ends it with code 1. The browser is $CHROMIUM or chromium on PATH.
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const [url] = process.argv.slice(2);
const profile = await mkdtemp(join(tmpdir(), "browser-"));
const browser = await chromium.launchPersistentContext(profile, {
  executablePath: process.env.CHROMIUM || "/usr/bin/chromium",
  headless: true,
  viewport: { width: 1000, height: 700 },
  args: [
    "--no-sandbox",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
  ],
});
const problems = [];
try {
  const page = await browser.newPage();
  page.setDefaultTimeout(120000); // another program may take the processor meanwhile
  page.on("console", (message) => {
    if (message.type() === "error") problems.push(message.text());
  });
  page.on("pageerror", (error) => problems.push(String(error)));
  await page.goto(url);
  await page.getByText("Paused").waitFor({ timeout: 120000 });
  await page.locator("canvas").first().waitFor({ timeout: 120000 });
  console.log(JSON.stringify("here"));
  const press = (name) => page.getByRole("button", { name, exact: true }).click();
  const commands = {
    status: async () => page.locator("p", { hasText: "loss" }).first().innerText(),
    pause: async () => page.getByLabel("Paused").click({ force: true }),
    step: async () => press("Step"),
    save: async () => press("Save"),
    light: async (name) => {
      await page.getByLabel("Light").click();
      await page.getByRole("option", { name, exact: true }).click();
    },
    turn: async () => {
      await page.mouse.move(500, 350);
      await page.mouse.down();
      await page.mouse.move(700, 380, { steps: 8 });
      await page.mouse.up();
    },
    look: async (file) => page.screenshot({ path: file }),
  };
  for await (const line of createInterface({ input: process.stdin })) {
    const [name, argument] = line.split(" ");
    if (name === "leave") break;
    const answer = await commands[name](argument);
    console.log(JSON.stringify(typeof answer === "string" ? answer : "done"));
  }
} finally {
  await browser.close();
  await rm(profile, { recursive: true, force: true });
}
if (problems.length) console.error(problems.join("\n"));
process.exit(problems.length ? 1 : 0); // stdin may still be open
