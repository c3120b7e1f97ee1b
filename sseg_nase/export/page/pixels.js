// From a photo to the square of pixels that the network takes, as Pillow resizes it.

const STRIP = 1 << 20; // pixels of a photo that are read at once
const LONGEST = 50; // times the shorter side: what is beyond is cut off
const LONGEST_SIDE = 16384; // pixels of a drawing that is not square
const BITS = 22; // of Pillow's fixed-point weights

/** Of each of `after` pixels along an axis, the `before` pixels that it is made of, and shares. */
function bilinearShares(before, after) {
  const scale = before / after;
  const support = Math.max(scale, 1);
  return Array.from({ length: after }, (_, n) => {
    const centre = (n + 0.5) * scale;
    const start = Math.max(0, Math.trunc(centre - support + 0.5));
    const stop = Math.min(before, Math.trunc(centre + support + 0.5));
    const raw = Array.from({ length: stop - start }, (_, k) =>
      Math.max(0, 1 - Math.abs((start + k - centre + 0.5) * (1 / support))));
    const total = raw.reduce((all, one) => all + one, 0);
    const weights = raw.map((one) => Math.trunc((total ? one / total : one) * 2 ** BITS + 0.5));
    return { start, weights: Float64Array.from(weights) };
  });
}

/** The same by the area that a pixel covers; `before` is more than `after`. */
function areaShares(before, after) {
  const scale = before / after;
  return Array.from({ length: after }, (_, n) => {
    const [low, high] = [n * scale, (n + 1) * scale];
    const start = Math.floor(low);
    const stop = Math.min(before, Math.ceil(high));
    const raw = Array.from({ length: stop - start }, (_, k) =>
      Math.max(0, Math.min(high, start + k + 1) - Math.max(low, start + k)));
    const total = raw.reduce((all, one) => all + one, 0);
    return { start, weights: Float64Array.from(raw, (one) => one / total) };
  });
}

// What a sum of weighted pixels becomes. Fixed point is rounded after either axis, areas once: a
// clamped array rounds to the nearest and of halves to the even, as NumPy does.
const fixed = {
  middle: Uint8ClampedArray,
  end: (sum) => Math.floor((sum + 2 ** (BITS - 1)) / 2 ** BITS),
};
const real = { middle: Float64Array, end: (sum) => sum };

/** Resize [outer, before, inner] along its second axis. */
function along(data, outer, before, inner, shares, end, Made) {
  const after = shares.length;
  const found = new Made(outer * after * inner);
  for (let o = 0; o < outer; o++) {
    for (let n = 0; n < after; n++) {
      const { start, weights } = shares[n];
      for (let c = 0; c < inner; c++) {
        let sum = 0;
        let from = (o * before + start) * inner + c;
        for (let k = 0; k < weights.length; k++, from += inner) sum += weights[k] * data[from];
        found[(o * after + n) * inner + c] = end(sum);
      }
    }
  }
  return found;
}

/**
 * `box` of the picture `source` (beside it there is paper) resized to [wide, high], one or three
 * channels. It is read in strips, so that a large photo needs little memory.
 */
function resized(source, box, [wide, high], channels, paper, shares, rounding) {
  const { left, top, width, height } = box;
  const rows = Math.max(1, Math.min(height, Math.floor(STRIP / width)));
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, rows];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  if (!context) throw new Error("it is too large for this browser");
  context.imageSmoothingEnabled = false;
  const across = wide === width ? null : shares(width, wide);
  const down = high === height ? null : shares(height, high);
  const Middle = down && across ? rounding.middle : Uint8ClampedArray;
  const middle = new Middle(height * wide * channels);
  for (let y = 0; y < height; y += rows) {
    const count = Math.min(rows, height - y);
    context.fillStyle = `rgb(${paper.join(",")})`;
    context.fillRect(0, 0, width, rows);
    context.drawImage(source, -left, -(top + y));
    const strip = inChannels(context.getImageData(0, 0, width, count).data, channels);
    const narrow = () => along(strip, count, width, channels, across, rounding.end, Middle);
    middle.set(across ? narrow() : strip, y * wide * channels);
  }
  if (!down) return middle;
  return along(middle, 1, height, wide * channels, down, rounding.end, Uint8ClampedArray);
}

/** From RGBA to RGB, or to grey by Pillow's weights. */
function inChannels(rgba, channels) {
  const count = rgba.length / 4;
  const found = new Uint8ClampedArray(count * channels);
  for (let i = 0; i < count; i++) {
    const [red, green, blue] = [rgba[4 * i], rgba[4 * i + 1], rgba[4 * i + 2]];
    if (channels === 1) {
      found[i] = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16;
    } else {
      found[3 * i] = red;
      found[3 * i + 1] = green;
      found[3 * i + 2] = blue;
    }
  }
  return found;
}

/** Half of a whole number, rounded as Python rounds: halves to the even. */
const half = (one) => (one % 2 === 0 ? one / 2 : 2 * Math.round(one / 4));

/** A photograph: the shorter side is resized, the longer one cut at the centre. */
function cut(source, width, height, side, channels, paper) {
  const most = LONGEST * Math.min(width, height);
  const box = {
    left: Math.max(0, Math.floor((width - most) / 2)),
    top: Math.max(0, Math.floor((height - most) / 2)),
    width: Math.min(width, most),
    height: Math.min(height, most),
  };
  const scaled = box.width <= box.height
    ? [side, Math.max(side, Math.floor((side * box.height) / box.width))]
    : [Math.max(side, Math.floor((side * box.width) / box.height)), side];
  const whole = resized(source, box, scaled, channels, paper, bilinearShares, fixed);
  const [left, top] = [half(scaled[0] - side), half(scaled[1] - side)];
  const found = new Uint8ClampedArray(side * side * channels);
  for (let y = 0; y < side; y++) {
    const from = ((top + y) * scaled[0] + left) * channels;
    found.set(whole.subarray(from, from + side * channels), y * side * channels);
  }
  return found;
}

/** A line drawing: nothing is cut off, there is paper beside a longer side. */
function drawn(source, width, height, side, channels, paper) {
  const longer = Math.max(width, height);
  if (width !== height && longer > LONGEST_SIDE) throw new Error("it is too large");
  const box = {
    left: -Math.floor((longer - width) / 2),
    top: -Math.floor((longer - height) / 2),
    width: longer,
    height: longer,
  };
  const [shares, rounding] = longer < side ? [bilinearShares, fixed] : [areaShares, real];
  return resized(source, box, [side, side], channels, paper, shares, rounding);
}

/** What the network is given of a picture of `width` x `height`: pixels [S, S, C]. */
function pixelsOf(source, width, height, { image_size: side, channels, reading }) {
  const make = reading.drawing ? drawn : cut;
  const found = make(source, width, height, side, channels, reading.background);
  return reading.invert ? found.map((one) => 255 - one) : found;
}

/** The picture in a file, upright, without what colour profiles would change. */
async function pictureOf(file) {
  try {
    const asStored = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
    return await createImageBitmap(file, asStored);
  } catch {
    throw new Error("this browser cannot read it as an image");
  }
}
