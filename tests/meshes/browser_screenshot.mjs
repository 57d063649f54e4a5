// Saves what a browser shows of a .glb file: three.js in headless Chromium, software rendering.
//
// Usage: node browser_screenshot.mjs MODEL.glb CAMERA.json OUT.png   (after npm ci in tests/)
//
// CAMERA.json: {"eye": [x, y, z], "target": [x, y, z], "up": [x, y, z], "fov_deg": vertical,
//   "width": pixels, "height": pixels} in the file's own coordinates, and optionally
//   "background": CSS colour (default "white"),
//   "light": "room" (default; three.js's RoomEnvironment), "above" (one directional light from
//     +Y and the eye's side), "none" (the base colour alone, unlit) or "silhouette" (the object
//     white, the background black).
// Nothing but a server on 127.0.0.1, started here, is asked for anything.
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { dirname, join, normalize, sep } from "node:path";
import { withBrowser } from "../browser.mjs";

const [model, cameraFile, out] = process.argv.slice(2);
const view = { background: "white", light: "room", ...JSON.parse(await readFile(cameraFile)) };
const three = join(dirname(createRequire(import.meta.url).resolve("three")), "..");

const PAGE = `<!doctype html>
<link rel="icon" href="data:,">
<style>body { margin: 0 } canvas { display: block }</style>
<script type="importmap">
  {"imports": {"three": "/three/build/three.module.js", "three/addons/": "/three/examples/jsm/"}}
</script>
<script type="module">
  import * as THREE from "three";
  import { GLTFLoader } from "three/addons/loaders/GLTFLoader.js";
  import { RoomEnvironment } from "three/addons/environments/RoomEnvironment.js";

  async function show(view) {
    const renderer = new THREE.WebGLRenderer({ antialias: true, preserveDrawingBuffer: true });
    renderer.setPixelRatio(1);
    renderer.setSize(view.width, view.height);
    renderer.toneMapping = THREE.NoToneMapping;
    renderer.outputColorSpace = THREE.SRGBColorSpace;
    document.body.append(renderer.domElement);

    const scene = new THREE.Scene();
    scene.background = new THREE.Color(view.background);
    const { scene: object } = await new GLTFLoader().loadAsync("/model.glb");
    scene.add(object);
    const eye = new THREE.Vector3(...view.eye);
    const target = new THREE.Vector3(...view.target);
    if (view.light === "room") {
      const filter = new THREE.PMREMGenerator(renderer);
      scene.environment = filter.fromScene(new RoomEnvironment(), 0.04).texture;
      scene.environmentIntensity = 0.7; // white stays below 1
    } else if (view.light === "above") {
      const light = new THREE.DirectionalLight("white", 3);
      const distance = eye.distanceTo(target);
      light.position.copy(eye).add(new THREE.Vector3(0, 1.5 * distance, 0));
      light.target.position.copy(target);
      scene.add(light, light.target);
    } else {
      const silhouette = view.light === "silhouette";
      if (silhouette) scene.background = new THREE.Color("black");
      object.traverse((node) => {
        if (!node.isMesh) return;
        const { map, side } = node.material;
        node.material = new THREE.MeshBasicMaterial({ map: silhouette ? null : map, side });
      });
    }
    const sphere = new THREE.Box3().setFromObject(object).getBoundingSphere(new THREE.Sphere());
    const distance = eye.distanceTo(sphere.center);
    const near = Math.max(distance - 1.01 * sphere.radius, 1e-3 * distance);
    const camera = new THREE.PerspectiveCamera(
      view.fov_deg, view.width / view.height, near, distance + 1.01 * sphere.radius);
    camera.up.set(...view.up);
    camera.position.copy(eye);
    camera.lookAt(target);
    renderer.render(scene, camera);
  }
  window.show = show;
</script>`;

const server = createServer(async (request, response) => {
  const path = new URL(request.url, "http://localhost").pathname;
  try {
    if (path === "/") return response.setHeader("Content-Type", "text/html").end(PAGE);
    if (path === "/model.glb") return response.end(await readFile(model));
    const file = normalize(join(three, path.replace(/^\/three\//, "")));
    if (!file.startsWith(three + sep)) throw new Error("outside of three.js");
    response.setHeader("Content-Type", "text/javascript").end(await readFile(file));
  } catch {
    response.writeHead(404).end();
  }
});
await new Promise((ready) => server.listen(0, "127.0.0.1", ready));

try {
  await withBrowser({ viewport: { width: view.width, height: view.height } }, async (browser) => {
    const page = await browser.newPage();
    const problems = [];
    page.on("console", (message) => {
      if (message.type() === "error") problems.push(message.text());
    });
    page.on("pageerror", (error) => problems.push(String(error)));
    await page.goto(`http://127.0.0.1:${server.address().port}/`);
    await page.waitForFunction(() => window.show);
    await page.evaluate((settings) => window.show(settings), view);
    await page.locator("canvas").screenshot({ path: out });
    if (problems.length) throw new Error(problems.join("\n"));
  });
} finally {
  server.close();
}
