// The 3D view of a report: one mesh, several materials to switch between, the run's own light or
// another one, single maps, and the mesh's edges.
//
// The page holds what is shown as JSON in #view-data (see ../view_data.py): the geometry as a GLB,
// each material's pictures as data URIs, the light as a Radiance .hdr. Nothing is asked for over
// any network. Built into ../viewer.js by build.mjs.
import {
  Box3,
  DataTexture,
  DoubleSide,
  EquirectangularReflectionMapping,
  HalfFloatType,
  LinearFilter,
  LinearSRGBColorSpace,
  MathUtils,
  Matrix3,
  Mesh,
  MeshBasicMaterial,
  MeshStandardMaterial,
  NoColorSpace,
  NoToneMapping,
  PMREMGenerator,
  PerspectiveCamera,
  RepeatWrapping,
  SRGBColorSpace,
  Scene,
  ShaderMaterial,
  Spherical,
  TextureLoader,
  Vector3,
  WebGLRenderer,
} from "three";
import { OrbitControls } from "three/addons/controls/OrbitControls.js";
import { RoomEnvironment } from "three/addons/environments/RoomEnvironment.js";
import { GLTFLoader } from "three/addons/loaders/GLTFLoader.js";
import { HDRLoader } from "three/addons/loaders/HDRLoader.js";

const FOV_DEG = 30; // the previews' cameras: rendering/cameras.py, six_views
const ELEVATION_DEG = 10;
const MARGIN = 1.03;
const TURN = Math.PI / 24; // of an arrow key
const EDGES = 0x0072b2;
// What of a picture's channels is shown as red, green and blue.
const CHANNELS = {
  roughness: [0, 1, 0, 0, 1, 0, 0, 1, 0],
  metallic: [0, 0, 1, 0, 0, 1, 0, 0, 1],
  normal: [1, 0, 0, 0, 1, 0, 0, 0, 1],
};

const figure = document.querySelector("#view");
const canvas = figure.querySelector("canvas");
const message = figure.querySelector("[role=status]");
const buttons = [...figure.querySelectorAll("[data-look]")];
const inputs = Object.fromEntries(
  ["channel", "light", "exposure", "turn", "wireframe"].map((name) => [
    name,
    figure.querySelector(`[data-${name}]`),
  ]),
);

start().catch((error) => {
  // The picture in the page stays where the view would be.
  figure.dataset.state = "failed";
  message.textContent = "This browser shows no 3D (WebGL 2 is missing or failed): a picture instead.";
  console.warn(error);
});

async function start() {
  const data = JSON.parse(document.querySelector("#view-data").textContent);
  const renderer = new WebGLRenderer({ canvas, antialias: true, alpha: true }); // on the page's own
  renderer.toneMapping = NoToneMapping;
  // "castex" is CasTex's own way: colours are converted nowhere.
  const converts = data.color_mode !== "castex";
  renderer.outputColorSpace = converts ? SRGBColorSpace : LinearSRGBColorSpace;
  const scene = new Scene();
  const lights = { run: () => environment(bytes(data.light)), room, white, none: () => null };

  const { scene: object } = await new GLTFLoader().parseAsync(bytes(data.geometry).buffer, "");
  const radius = normalise(object);
  scene.add(object);
  const meshes = [];
  object.traverse((node) => node.isMesh && meshes.push(node));
  const edges = meshes.map((mesh) => addEdges(mesh));
  const looks = await Promise.all(data.looks.map((look) => loadLook(look, data, renderer)));

  const camera = new PerspectiveCamera(FOV_DEG, 1, 0.05, 100);
  const controls = new OrbitControls(camera, canvas);
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  controls.enableDamping = !still.matches;
  still.addEventListener("change", () => (controls.enableDamping = !still.matches));
  canvas.style.touchAction = "pan-y"; // a finger that moves up or down scrolls the page
  controls.enablePan = false;
  controls.enableZoom = false; // until the view is chosen, the wheel scrolls the page

  let queued = false;
  const draw = () => {
    queued = false;
    if (controls.update()) queue(); // still moving
    renderer.render(scene, camera);
  };
  const queue = () => {
    if (!queued) requestAnimationFrame(draw);
    queued = true;
  };
  controls.addEventListener("change", queue);

  const distance = () => {
    // A sphere around the object fits the narrower side.
    const narrow = Math.min(1, camera.aspect) * Math.tan(MathUtils.degToRad(FOV_DEG / 2));
    return (MARGIN * radius) / Math.sin(Math.atan(narrow));
  };
  const reset = () => {
    const polar = MathUtils.degToRad(90 - ELEVATION_DEG);
    camera.position.setFromSpherical(new Spherical(distance(), polar, 0));
    controls.target.set(0, 0, 0);
    controls.minDistance = 0.2 * distance();
    controls.maxDistance = 4 * distance();
    controls.update();
    queue();
  };
  const resize = () => {
    const { clientWidth: width, clientHeight: height } = canvas.parentElement;
    if (!width || !height) return;
    const before = distance();
    renderer.setPixelRatio(Math.min(devicePixelRatio, 2));
    renderer.setSize(width, height, false);
    camera.aspect = width / height;
    camera.updateProjectionMatrix();
    camera.position.multiplyScalar(distance() / before);
    controls.minDistance = 0.2 * distance();
    controls.maxDistance = 4 * distance();
    queue();
  };
  const orbit = (azimuth, polar, scale) => {
    const place = new Spherical().setFromVector3(camera.position);
    place.theta += azimuth;
    place.phi = MathUtils.clamp(place.phi + polar, 0.02, Math.PI - 0.02);
    place.radius = MathUtils.clamp(place.radius * scale, controls.minDistance, controls.maxDistance);
    camera.position.setFromSpherical(place);
    controls.update();
    queue();
  };
  let shown = 0;
  const show = (index) => {
    shown = index;
    const channel = inputs.channel.value;
    // Lit by nothing, the albedo alone is seen.
    const kind = channel === "shaded" && !scene.environment ? "albedo" : channel;
    for (const mesh of meshes) mesh.material = looks[index](kind, sideOf(mesh));
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(i === index)));
    const [option] = inputs.channel.selectedOptions;
    message.textContent = `showing ${data.looks[index].label}, ${option.textContent}`;
    figure.dataset.shown = data.looks[index].name;
    figure.dataset.kind = kind;
    queue();
  };
  const made = {};
  const shine = () => {
    const name = inputs.light.value;
    made[name] ??= lights[name](renderer);
    scene.environment = made[name];
    scene.environmentIntensity = 2 ** inputs.exposure.valueAsNumber;
    scene.environmentRotation.y = MathUtils.degToRad(inputs.turn.valueAsNumber);
    const stops = inputs.exposure.valueAsNumber;
    inputs.exposure.nextElementSibling.value = `${stops > 0 ? "+" : ""}${stops}`.replace("-", "−");
    inputs.turn.nextElementSibling.value = `${inputs.turn.value}°`.replace("-", "−");
    show(shown);
  };
  const toggleEdges = () => {
    const visible = !edges[0].visible;
    for (const mesh of edges) mesh.visible = visible;
    inputs.wireframe.setAttribute("aria-pressed", String(visible));
    queue();
  };

  const keys = {
    ArrowLeft: () => orbit(-TURN, 0, 1),
    ArrowRight: () => orbit(TURN, 0, 1),
    ArrowUp: () => orbit(0, -TURN, 1),
    ArrowDown: () => orbit(0, TURN, 1),
    "+": () => orbit(0, 0, 0.9),
    "=": () => orbit(0, 0, 0.9),
    "-": () => orbit(0, 0, 1 / 0.9),
    0: reset,
    Home: reset,
    w: toggleEdges,
  };
  looks.forEach((_, i) => (keys[i + 1] = () => show(i)));
  figure.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !Object.hasOwn(keys, event.key)) return;
    if (event.target.matches("select, input")) return; // which have keys of their own
    keys[event.key]();
    event.preventDefault();
  });
  canvas.addEventListener("pointerdown", () => canvas.focus({ preventScroll: true }));
  canvas.addEventListener("focus", () => (controls.enableZoom = true));
  canvas.addEventListener("blur", () => (controls.enableZoom = false));
  buttons.forEach((button, i) => button.addEventListener("click", () => show(i)));
  figure.querySelector("[data-reset]").addEventListener("click", reset);
  inputs.wireframe.addEventListener("click", toggleEdges);
  inputs.channel.addEventListener("input", () => show(shown));
  for (const name of ["light", "exposure", "turn"]) inputs[name].addEventListener("input", shine);

  resize();
  reset();
  shine();
  figure.dataset.state = "ready"; // shows the canvas in the picture's place
  new ResizeObserver(resize).observe(canvas.parentElement);
  resize();
  renderer.render(scene, camera);
  figure.dataset.drawn = "yes";
}

/** Centres the object and scales its largest extent to 2; the radius that holds it around 0. */
function normalise(object) {
  object.updateMatrixWorld(true);
  const box = new Box3().setFromObject(object, true);
  const size = box.getSize(new Vector3());
  const scale = 2 / Math.max(size.x, size.y, size.z, Number.MIN_VALUE);
  object.scale.setScalar(scale);
  object.position.copy(box.getCenter(new Vector3())).multiplyScalar(-scale);
  object.updateMatrixWorld(true);
  let radius = 0;
  const point = new Vector3();
  object.traverse((node) => {
    const positions = node.isMesh ? node.geometry.attributes.position : { count: 0 };
    for (let i = 0; i < positions.count; i++) {
      point.fromBufferAttribute(positions, i).applyMatrix4(node.matrixWorld);
      radius = Math.max(radius, point.length());
    }
  });
  return radius;
}

/** Makes materials for what is shown of a look and for the sides that meshes show, each once. */
async function loadLook(look, data, renderer) {
  const texture = async (uri, colorSpace) => {
    const loaded = await new TextureLoader().loadAsync(uri);
    loaded.flipY = false; // glTF's v runs down
    loaded.wrapS = loaded.wrapT = RepeatWrapping;
    loaded.colorSpace = colorSpace;
    loaded.anisotropy = renderer.capabilities.getMaxAnisotropy();
    return loaded;
  };
  const [map, roughness, normalMap] = await Promise.all([
    texture(look.albedo, data.color_mode === "castex" ? NoColorSpace : SRGBColorSpace),
    texture(look.metallic_roughness, NoColorSpace),
    texture(look.normal, NoColorSpace),
  ]);
  const makers = {
    albedo: () => new MeshBasicMaterial({ map }),
    shaded: () =>
      new MeshStandardMaterial({
        map,
        normalMap,
        roughnessMap: roughness,
        metalnessMap: roughness,
        roughness: 1,
        metalness: 1,
      }),
    roughness: () => raw(roughness, CHANNELS.roughness),
    metallic: () => raw(roughness, CHANNELS.metallic),
    normal: () => raw(normalMap, CHANNELS.normal),
  };
  const made = {};
  return (kind, side) => {
    const material = (made[kind + side] ??= makers[kind]());
    if (side === "both") material.side = DoubleSide;
    // Edges lie on the surface and shall win.
    material.polygonOffset = true;
    material.polygonOffsetFactor = material.polygonOffsetUnits = 1;
    return material;
  };
}

/** Numbers of a picture as they stand in its file, with no light and no conversion. */
function raw(map, channels) {
  return new ShaderMaterial({
    uniforms: { map: { value: map }, channels: { value: new Matrix3().fromArray(channels).transpose() } },
    vertexShader: `varying vec2 place;
      void main() {
        place = uv;
        gl_Position = projectionMatrix * modelViewMatrix * vec4(position, 1.0);
      }`,
    fragmentShader: `uniform sampler2D map;
      uniform mat3 channels;
      varying vec2 place;
      void main() { gl_FragColor = vec4(channels * texture2D(map, place).rgb, 1.0); }`,
  });
}

/** The edges of a mesh's faces, over it, hidden at first. */
function addEdges(mesh) {
  const edges = new Mesh(
    mesh.geometry,
    new MeshBasicMaterial({ color: EDGES, wireframe: true, transparent: true, opacity: 0.45 }),
  );
  edges.visible = false;
  mesh.add(edges);
  return edges;
}

/** Lamps in a grey room, from three.js. */
function room(renderer) {
  return new PMREMGenerator(renderer).fromScene(new RoomEnvironment(), 0.04).texture;
}

/** The same from everywhere. */
function white() {
  // Smaller panoramas than this are prefiltered to nothing.
  const [width, height] = [64, 32];
  const texture = new DataTexture(new Uint8Array(4 * width * height).fill(255), width, height);
  texture.mapping = EquirectangularReflectionMapping;
  texture.needsUpdate = true;
  return texture;
}

function sideOf(mesh) {
  mesh.userData.side ??= mesh.material.side === DoubleSide ? "both" : "front";
  return mesh.userData.side;
}

function environment(content) {
  const { data, width, height } = new HDRLoader().setDataType(HalfFloatType).parse(content.buffer);
  const texture = new DataTexture(data, width, height);
  texture.type = HalfFloatType;
  texture.colorSpace = LinearSRGBColorSpace;
  texture.minFilter = texture.magFilter = LinearFilter;
  texture.flipY = true; // its first row is the zenith's
  texture.mapping = EquirectangularReflectionMapping;
  texture.needsUpdate = true;
  return texture;
}

function bytes(base64) {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}
