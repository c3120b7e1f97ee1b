// The network: a graph of ONNX operations on tensors {shape, data}. Floats are Float32Array, whole
// numbers Int32Array or Uint8Array. Operations are named and defined as ONNX has them.

const size = (shape) => shape.reduce((all, one) => all * one, 1);
const tensor = (shape, data) => ({ shape, data });
const like = (x, shape = x.shape) => tensor(shape, new x.data.constructor(size(shape)));
const reshaped = (x, shape) => tensor(shape, x.data);
const axisOf = (x, axis) => (axis < 0 ? axis + x.shape.length : axis);
const numbers = (x) => Array.from(x.data);

/** How far apart the neighbours along each axis lie. */
function steps(shape) {
  const found = new Array(shape.length);
  let step = 1;
  for (let axis = shape.length - 1; axis >= 0; axis--) {
    found[axis] = step;
    step *= shape[axis];
  }
  return found;
}

/** Where the elements of `shape` lie in data whose neighbours are `strides` apart, in order. */
function places(shape, strides, start = 0) {
  let found = Int32Array.of(start);
  shape.forEach((count, axis) => {
    const next = new Int32Array(found.length * count);
    let at = 0;
    for (let i = 0; i < found.length; i++) {
      for (let k = 0; k < count; k++) next[at++] = found[i] + k * strides[axis];
    }
    found = next;
  });
  return found;
}

function viewed(x, shape, strides, start = 0) {
  const from = places(shape, strides, start);
  const y = like(x, shape);
  for (let i = 0; i < from.length; i++) y.data[i] = x.data[from[i]];
  return y;
}

// Broadcasting.

function common(...shapes) {
  const rank = Math.max(...shapes.map((shape) => shape.length));
  return Array.from({ length: rank }, (_, axis) => {
    const sizes = shapes.map((shape) => shape[axis - rank + shape.length] ?? 1);
    return sizes.find((one) => one !== 1) ?? 1;
  });
}

/** Strides of x in `shape`, 0 along axes on which it is repeated. */
function spread(x, shape) {
  const own = steps(x.shape);
  const more = shape.length - x.shape.length;
  return shape.map((_, axis) => (axis < more || x.shape[axis - more] === 1 ? 0 : own[axis - more]));
}

function expanded(x, shape) {
  const same = x.shape.length === shape.length && x.shape.every((one, axis) => one === shape[axis]);
  return same ? x : viewed(x, shape, spread(x, shape));
}

function binary(compute) {
  return ([a, b]) => {
    const shape = common(a.shape, b.shape);
    const [x, y, found] = [expanded(a, shape).data, expanded(b, shape).data, like(a, shape)];
    for (let i = 0; i < x.length; i++) found.data[i] = compute(x[i], y[i]);
    return found;
  };
}

// What networks do with whole maps is spelled out, so that each loop is compiled for one operation.

function add([a, b]) {
  const shape = common(a.shape, b.shape);
  const [x, y, found] = [expanded(a, shape).data, expanded(b, shape).data, like(a, shape)];
  const out = found.data;
  for (let i = 0; i < out.length; i++) out[i] = x[i] + y[i];
  return found;
}

function multiply([a, b]) {
  const shape = common(a.shape, b.shape);
  const [x, y, found] = [expanded(a, shape).data, expanded(b, shape).data, like(a, shape)];
  const out = found.data;
  for (let i = 0; i < out.length; i++) out[i] = x[i] * y[i];
  return found;
}

function unary(compute) {
  return ([x]) => {
    const found = like(x);
    for (let i = 0; i < x.data.length; i++) found.data[i] = compute(x.data[i]);
    return found;
  };
}

function leaky([x], { alpha = 0.01 }) {
  const found = like(x);
  const [values, out] = [x.data, found.data];
  for (let i = 0; i < out.length; i++) {
    const one = values[i];
    out[i] = Math.max(one, 0) + alpha * Math.min(one, 0);
  }
  return found;
}

function clip([x, low, high]) {
  const [least, most] = [low ? low.data[0] : -Infinity, high ? high.data[0] : Infinity];
  const found = like(x);
  const [values, out] = [x.data, found.data];
  for (let i = 0; i < out.length; i++) out[i] = Math.min(Math.max(values[i], least), most);
  return found;
}

function hardSwish([x]) {
  const found = like(x);
  const [values, out] = [x.data, found.data];
  for (let i = 0; i < out.length; i++) {
    const one = values[i];
    out[i] = one * Math.min(Math.max(one / 6 + 0.5, 0), 1);
  }
  return found;
}

const SELU = { alpha: 1.67326319217681884765625, gamma: 1.05070102214813232421875 };

const elu = ([x], { alpha = 1 }) => unary((one) => (one < 0 ? alpha * Math.expm1(one) : one))([x]);

function selu([x], { alpha = SELU.alpha, gamma = SELU.gamma }) {
  return unary((one) => gamma * (one < 0 ? alpha * Math.expm1(one) : one))([x]);
}

// Convolutions and matrix products.

/** The matrix [rows, depth] at `from` in blocks of four rows: [rows / 4, depth, 4], with zeros. */
function blocked(data, from, rows, depth) {
  const found = new Float32Array(Math.ceil(rows / 4) * 4 * depth);
  for (let row = 0; row < rows; row++) {
    const start = (row >> 2) * 4 * depth + (row & 3);
    const own = from + row * depth;
    for (let k = 0; k < depth; k++) found[start + 4 * k] = data[own + k];
  }
  return found;
}

const packed = new WeakMap(); // weights in the order in which `conv` reads them

/** The weights of each group, `blocked` once. */
function inFours(weight, group) {
  if (!packed.has(weight)) {
    const rows = weight.shape[0] / group;
    const depth = size(weight.shape.slice(1));
    const made = (_, g) => blocked(weight.data, g * rows * depth, rows, depth);
    packed.set(weight, Array.from({ length: group }, made));
  }
  return packed.get(weight);
}

/** One image of `channels` with zeros around it. */
function padded(data, start, channels, height, width, [top, left, bottom, right]) {
  const [high, wide] = [height + top + bottom, width + left + right];
  if (!top && !left && !bottom && !right) {
    return data.subarray(start, start + channels * height * width);
  }
  const found = new Float32Array(channels * high * wide);
  for (let c = 0; c < channels; c++) {
    for (let y = 0; y < height; y++) {
      const from = start + (c * height + y) * width;
      found.set(data.subarray(from, from + width), (c * high + y + top) * wide + left);
    }
  }
  return found;
}

/** How many places a window has along an axis. */
const windows = (length, kernel, stride, around, dilation) =>
  Math.floor((length + around - dilation * (kernel - 1) - 1) / stride) + 1;

function conv([x, weight, bias], attributes) {
  const { strides = [1, 1], pads = [0, 0, 0, 0], dilations = [1, 1], group = 1 } = attributes;
  const [batch, channels, height, width] = x.shape;
  const [outputs, inner, kh, kw] = weight.shape;
  const high = windows(height, kh, strides[0], pads[0] + pads[2], dilations[0]);
  const wide = windows(width, kw, strides[1], pads[1] + pads[3], dilations[1]);
  const [inHigh, inWide] = [height + pads[0] + pads[2], width + pads[1] + pads[3]];
  // An output at position p sums input[bases[p] + offsets[k]] * weight[k].
  const bases = places([high, wide], [strides[0] * inWide, strides[1]]);
  const offsets = places([inner, kh, kw], [inHigh * inWide, dilations[0] * inWide, dilations[1]]);
  const [rows, depth, count] = [outputs / group, offsets.length, bases.length];
  const found = tensor([batch, outputs, high, wide], new Float32Array(batch * outputs * count));
  for (let b = 0; b < batch; b++) {
    const input = padded(x.data, b * channels * height * width, channels, height, width, pads);
    for (let g = 0; g < group; g++) {
      const own = input.subarray(g * inner * inHigh * inWide, (g + 1) * inner * inHigh * inWide);
      const start = (b * group + g) * rows * count;
      const out = found.data.subarray(start, start + rows * count);
      const shift = bias ? bias.data.subarray(g * rows, (g + 1) * rows) : new Float32Array(rows);
      if (rows === 1) {
        const part = weight.data.subarray(g * depth, (g + 1) * depth);
        single(own, bases, offsets, part, shift[0], out);
      } else {
        fours(own, bases, offsets, inFours(weight, group)[g], shift, out);
      }
    }
  }
  return found;
}

/** The inner loop: four rows of weights at two positions share what is read. */
function fours(input, bases, offsets, weight, bias, out) {
  const count = bases.length;
  const depth = offsets.length;
  for (let row = 0; row < bias.length; row += 4) {
    for (let p = 0; p < count; p += 2) {
      const left = bases[p];
      const right = bases[p + 1 < count ? p + 1 : p];
      let a0 = 0;
      let a1 = 0;
      let a2 = 0;
      let a3 = 0;
      let b0 = 0;
      let b1 = 0;
      let b2 = 0;
      let b3 = 0;
      let w = row * depth;
      for (let k = 0; k < depth; k++, w += 4) {
        const x = input[left + offsets[k]];
        const y = input[right + offsets[k]];
        const w0 = weight[w];
        const w1 = weight[w + 1];
        const w2 = weight[w + 2];
        const w3 = weight[w + 3];
        a0 += w0 * x;
        a1 += w1 * x;
        a2 += w2 * x;
        a3 += w3 * x;
        b0 += w0 * y;
        b1 += w1 * y;
        b2 += w2 * y;
        b3 += w3 * y;
      }
      put(out, bias, row, count, p, a0, a1, a2, a3);
      if (p + 1 < count) put(out, bias, row, count, p + 1, b0, b1, b2, b3);
    }
  }
}

function put(out, bias, row, count, p, a, b, c, d) {
  const rows = bias.length - row;
  out[row * count + p] = a + bias[row];
  if (rows > 1) out[(row + 1) * count + p] = b + bias[row + 1];
  if (rows > 2) out[(row + 2) * count + p] = c + bias[row + 2];
  if (rows > 3) out[(row + 3) * count + p] = d + bias[row + 3];
}

/** A group with one output, such as a channel of a depthwise convolution: four positions share. */
function single(input, bases, offsets, weight, bias, out) {
  const count = bases.length;
  const depth = offsets.length;
  for (let p = 0; p < count; p += 4) {
    const p0 = bases[p];
    const p1 = bases[p + 1 < count ? p + 1 : p];
    const p2 = bases[p + 2 < count ? p + 2 : p];
    const p3 = bases[p + 3 < count ? p + 3 : p];
    let a0 = bias;
    let a1 = bias;
    let a2 = bias;
    let a3 = bias;
    for (let k = 0; k < depth; k++) {
      const at = offsets[k];
      const factor = weight[k];
      a0 += factor * input[p0 + at];
      a1 += factor * input[p1 + at];
      a2 += factor * input[p2 + at];
      a3 += factor * input[p3 + at];
    }
    out[p] = a0;
    if (p + 1 < count) out[p + 1] = a1;
    if (p + 2 < count) out[p + 2] = a2;
    if (p + 3 < count) out[p + 3] = a3;
  }
}

function matmul([a, b]) {
  const [rows, depth] = a.shape.slice(-2);
  const columns = b.shape[b.shape.length - 1];
  const around = common(a.shape.slice(0, -2), b.shape.slice(0, -2));
  const batches = (x) => {
    const outer = tensor(x.shape.slice(0, -2), x.data);
    const one = x.shape[x.shape.length - 1] * x.shape[x.shape.length - 2];
    return places(around, spread(outer, around)).map((place) => place * one);
  };
  const [left, right] = [batches(a), batches(b)];
  const [bases, offsets] = [places([columns], [1]), places([depth], [columns])];
  const nothing = new Float32Array(rows);
  const found = like(a, [...around, rows, columns]);
  for (let n = 0; n < left.length; n++) {
    const input = b.data.subarray(right[n], right[n] + depth * columns);
    const out = found.data.subarray(n * rows * columns, (n + 1) * rows * columns);
    fours(input, bases, offsets, blocked(a.data, left[n], rows, depth), nothing, out);
  }
  return found;
}

function gemm([a, b, c], { alpha = 1, beta = 1, transA = 0, transB = 0 }) {
  const turned = (x, flag) => (flag ? transpose([x], { perm: [1, 0] }) : x);
  const product = matmul([turned(a, transA), turned(b, transB)]);
  const shift = c ? expanded(c, product.shape).data : null;
  for (let i = 0; i < product.data.length; i++) {
    product.data[i] = alpha * product.data[i] + (shift ? beta * shift[i] : 0);
  }
  return product;
}

// Pooling.

function pool(x, attributes, start, join, end) {
  const { kernel_shape, strides = [1, 1], pads = [0, 0, 0, 0] } = attributes;
  const { dilations = [1, 1], ceil_mode = 0 } = attributes;
  const [batch, channels, height, width] = x.shape;
  const [kh, kw] = kernel_shape;
  const around = [pads[0] + pads[2], pads[1] + pads[3]];
  if (ceil_mode) {
    // Up to where windows reach that begin in the image, or before it.
    [height, width].forEach((length, axis) => {
      const begin = length + pads[axis];
      const step = strides[axis];
      const whole = length + around[axis] - kernel_shape[axis];
      let last = Math.ceil(whole / step) * step;
      if (last >= begin) last -= step;
      around[axis] = last + kernel_shape[axis] - length;
    });
  }
  const high = windows(height, kh, strides[0], around[0], dilations[0]);
  const wide = windows(width, kw, strides[1], around[1], dilations[1]);
  const found = like(x, [batch, channels, high, wide]);
  let at = 0;
  for (let plane = 0; plane < batch * channels; plane++) {
    for (let row = 0; row < high; row++) {
      for (let column = 0; column < wide; column++) {
        let [all, inside, tall, across] = [start, 0, 0, 0]; // the last two with the padding
        for (let j = 0; j < kw; j++) {
          across += column * strides[1] + j * dilations[1] < width + pads[1] + pads[3];
        }
        for (let i = 0; i < kh; i++) {
          const y = row * strides[0] - pads[0] + i * dilations[0];
          tall += y < height + pads[2];
          if (y < 0 || y >= height) continue;
          for (let j = 0; j < kw; j++) {
            const x0 = column * strides[1] - pads[1] + j * dilations[1];
            if (x0 < 0 || x0 >= width) continue;
            all = join(all, x.data[(plane * height + y) * width + x0]);
            inside++;
          }
        }
        found.data[at++] = end(all, inside, tall * across);
      }
    }
  }
  return found;
}

const maxPool = ([x], attributes) =>
  pool(x, attributes, -Infinity, (a, b) => (a > b ? a : b), (all) => all);

function averagePool([x], attributes) {
  const padded = attributes.count_include_pad;
  const end = (all, inside, either) => all / (padded ? either : inside);
  return pool(x, attributes, 0, (a, b) => a + b, end);
}

// Reductions and normalisation.

function reduction(start, join, end) {
  return ([x, axes], { keepdims = 1, noop_with_empty_axes = 0 }) => {
    if (!axes && noop_with_empty_axes) return x;
    const over = new Set(axes ? numbers(axes).map((one) => axisOf(x, one)) : x.shape.keys());
    const kept = x.shape.map((count, axis) => (over.has(axis) ? 1 : count));
    // Axes at the end that are reduced whole lie side by side: only the others need their places.
    let outer = x.shape.length;
    while (outer > 0 && over.has(outer - 1)) outer--;
    const strides = steps(kept).map((step, axis) => (over.has(axis) ? 0 : step));
    const to = places(x.shape.slice(0, outer), strides.slice(0, outer));
    const run = x.data.length / to.length;
    const all = new Float64Array(size(kept)).fill(start);
    for (let n = 0; n < to.length; n++) {
      let joined = all[to[n]];
      for (let i = n * run; i < (n + 1) * run; i++) joined = join(joined, x.data[i]);
      all[to[n]] = joined;
    }
    const found = like(x, keepdims ? kept : x.shape.filter((_, axis) => !over.has(axis)));
    for (let i = 0; i < all.length; i++) found.data[i] = end(all[i], x.data.length / all.length);
    return found;
  };
}

const mean = reduction(0, (a, b) => a + b, (all, count) => all / count);
const globalMean = ([x]) => mean([x, tensor([2], Int32Array.of(2, 3))], {});

function batchNorm([x, scale, bias, means, variance], { epsilon = 1e-5 }) {
  const found = like(x);
  const [channels, plane] = [x.shape[1], size(x.shape.slice(2))];
  for (let i = 0; i < x.data.length; i++) {
    const c = Math.floor(i / plane) % channels;
    const factor = scale.data[c] / Math.sqrt(variance.data[c] + epsilon);
    found.data[i] = (x.data[i] - means.data[c]) * factor + bias.data[c];
  }
  return found;
}

function layerNorm([x, scale, bias], { axis = -1, epsilon = 1e-5 }) {
  const length = size(x.shape.slice(axisOf(x, axis)));
  const found = like(x);
  for (let start = 0; start < x.data.length; start += length) {
    let [sum, squares] = [0, 0];
    for (let i = 0; i < length; i++) sum += x.data[start + i];
    const centre = sum / length;
    for (let i = 0; i < length; i++) squares += (x.data[start + i] - centre) ** 2;
    const factor = 1 / Math.sqrt(squares / length + epsilon);
    for (let i = 0; i < length; i++) {
      const one = (x.data[start + i] - centre) * factor * scale.data[i];
      found.data[start + i] = bias ? one + bias.data[i] : one;
    }
  }
  return found;
}

function softmaxOf([x], { axis = -1 }) {
  const along = tensor([1], Int32Array.of(axisOf(x, axis)));
  const largest = reduction(-Infinity, Math.max, (all) => all)([x, along], {});
  const raised = unary(Math.exp)([binary((a, b) => a - b)([x, largest])]);
  const total = reduction(0, (a, b) => a + b, (all) => all)([raised, along], {});
  return binary((a, b) => a / b)([raised, total]);
}

// The error function: a table in steps of 2^-12, linear between, right to 1e-8.

let table = null;

/** A series of positive terms: 2 / sqrt(pi) exp(-x^2) sum of 2^n x^(2n + 1) / (2n + 1)!!. */
function erfSeries(x) {
  let [term, sum] = [x, x];
  for (let n = 1; term > 1e-17 * sum; n++) {
    term *= (2 * x * x) / (2 * n + 1);
    sum += term;
  }
  return (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * sum;
}

function erf(x) {
  table ??= Float64Array.from({ length: 6 * 4096 + 2 }, (_, n) => erfSeries(n / 4096));
  const at = Math.min(Math.abs(x), 6) * 4096;
  const low = Math.floor(at);
  return Math.sign(x) * (table[low] + (at - low) * (table[low + 1] - table[low]));
}

const normal = (x) => 0.5 * x * (1 + erf(x / Math.SQRT2));
const nearlyNormal = (x) =>
  0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)));

// Shapes.

function transpose([x], { perm = [...x.shape.keys()].reverse() }) {
  const own = steps(x.shape);
  return viewed(x, perm.map((axis) => x.shape[axis]), perm.map((axis) => own[axis]));
}

function slice([x, starts, ends, axes, by]) {
  const [shape, strides] = [[...x.shape], steps(x.shape)];
  let start = 0;
  numbers(starts).forEach((from, n) => {
    const axis = axisOf(x, axes ? axes.data[n] : n);
    const step = by ? by.data[n] : 1;
    const count = x.shape[axis];
    const [low, high] = step > 0 ? [0, count] : [-1, count - 1];
    const inside = (one) => Math.min(Math.max(one < 0 ? one + count : one, low), high);
    const first = inside(from);
    shape[axis] = Math.max(0, Math.ceil((inside(ends.data[n]) - first) / step));
    start += first * strides[axis];
    strides[axis] *= step;
  });
  return viewed(x, shape, strides, start);
}

function concat(parts, { axis }) {
  const at = axisOf(parts[0], axis);
  const shape = [...parts[0].shape];
  shape[at] = parts.reduce((all, part) => all + part.shape[at], 0);
  const found = like(parts[0], shape);
  const [outer, whole] = [size(shape.slice(0, at)), size(shape.slice(at))];
  let start = 0;
  for (const part of parts) {
    const own = size(part.shape.slice(at));
    for (let n = 0; n < outer; n++) {
      found.data.set(part.data.subarray(n * own, (n + 1) * own), n * whole + start);
    }
    start += own;
  }
  return found;
}

function split([x, sizes], { axis = 0, num_outputs }) {
  const at = axisOf(x, axis);
  const count = x.shape[at];
  // As many as asked for; where they do not divide, NumPy's way: the first ones have one more.
  const even = (n) => Math.floor(count / num_outputs) + (n < count % num_outputs ? 1 : 0);
  const lengths = sizes ? numbers(sizes) : Array.from({ length: num_outputs }, (_, n) => even(n));
  const whole = (one) => tensor([1], Int32Array.of(one));
  let start = 0;
  return lengths.map((length) => {
    const part = slice([x, whole(start), whole(start + length), whole(at)]);
    start += length;
    return part;
  });
}

function gather([x, indices], { axis = 0 }) {
  const at = axisOf(x, axis);
  const [outer, inner] = [size(x.shape.slice(0, at)), size(x.shape.slice(at + 1))];
  const found = like(x, [...x.shape.slice(0, at), ...indices.shape, ...x.shape.slice(at + 1)]);
  let to = 0;
  for (let n = 0; n < outer; n++) {
    for (const index of indices.data) {
      const from = (n * x.shape[at] + (index < 0 ? index + x.shape[at] : index)) * inner;
      found.data.set(x.data.subarray(from, from + inner), to);
      to += inner;
    }
  }
  return found;
}

function pad([x, pads, value, axes]) {
  const half = pads.data.length / 2;
  const [shape, before] = [[...x.shape], new Array(x.shape.length).fill(0)];
  for (let n = 0; n < half; n++) {
    const axis = axisOf(x, axes ? axes.data[n] : n);
    before[axis] = pads.data[n];
    shape[axis] += pads.data[n] + pads.data[half + n];
  }
  const found = like(x, shape);
  if (value) found.data.fill(value.data[0]);
  const strides = steps(shape);
  const start = before.reduce((all, one, axis) => all + one * strides[axis], 0);
  const to = places(x.shape, strides, start);
  for (let i = 0; i < to.length; i++) found.data[to[i]] = x.data[i];
  return found;
}

function reshape([x, wanted], { allowzero = 0 }) {
  const kept = (one, axis) => (one === 0 && !allowzero ? x.shape[axis] : one);
  const shape = numbers(wanted).map(kept);
  const open = shape.indexOf(-1);
  if (open >= 0) shape[open] = -x.data.length / size(shape);
  return reshaped(x, shape);
}

function squeeze([x, axes]) {
  const out = axes ? numbers(axes).map((one) => axisOf(x, one)) : null;
  return reshaped(x, x.shape.filter((one, axis) => (out ? !out.includes(axis) : one !== 1)));
}

function unsqueeze([x, axes]) {
  const rank = x.shape.length + axes.data.length;
  const shape = [...x.shape];
  const places = numbers(axes).map((one) => (one < 0 ? one + rank : one));
  for (const axis of places.sort((a, b) => a - b)) shape.splice(axis, 0, 1);
  return reshaped(x, shape);
}

const TYPES = {
  1: Float32Array, 2: Uint8Array, 3: Int8Array, 6: Int32Array, 7: Int32Array, 9: Uint8Array,
  11: Float64Array,
};

const operations = {
  Add: add,
  AveragePool: averagePool,
  BatchNormalization: batchNorm,
  Cast: ([x], { to }) => tensor(x.shape, TYPES[to].from(x.data)),
  Clip: clip,
  Concat: concat,
  Conv: conv,
  Div: ([a, b]) => {
    const whole = !(a.data instanceof Float32Array);
    return binary(whole ? (x, y) => Math.floor(x / y) : (x, y) => x / y)([a, b]);
  },
  Elu: elu,
  Erf: unary(erf),
  Exp: unary(Math.exp),
  Expand: ([x, shape]) => expanded(x, common(x.shape, numbers(shape))),
  Flatten: ([x], { axis = 1 }) => {
    const before = size(x.shape.slice(0, axis));
    return reshaped(x, [before, x.data.length / before]);
  },
  Gather: gather,
  Gelu: ([x], { approximate = "none" }) =>
    unary(approximate === "tanh" ? nearlyNormal : normal)([x]),
  Gemm: gemm,
  GlobalAveragePool: globalMean,
  HardSigmoid: ([x], { alpha = 0.2, beta = 0.5 }) =>
    unary((one) => Math.min(Math.max(alpha * one + beta, 0), 1))([x]),
  HardSwish: hardSwish,
  Identity: ([x]) => x,
  LayerNormalization: layerNorm,
  LeakyRelu: leaky,
  MatMul: matmul,
  MaxPool: maxPool,
  Mul: multiply,
  Neg: unary((x) => -x),
  Pad: pad,
  Pow: binary((a, b) => a ** b),
  Range: ([first, end, step]) => {
    const [low, high, by] = [first, end, step].map((one) => one.data[0]);
    const count = Math.max(0, Math.ceil((high - low) / by));
    const values = Array.from({ length: count }, (_, n) => low + n * by);
    return tensor([count], first.data.constructor.from(values));
  },
  ReduceMax: reduction(-Infinity, Math.max, (all) => all),
  ReduceMean: mean,
  ReduceSum: reduction(0, (a, b) => a + b, (all) => all),
  Relu: ([x]) => leaky([x], { alpha: 0 }),
  Reshape: reshape,
  Selu: selu,
  Shape: ([x], { start = 0, end }) => {
    const shape = x.shape.slice(start, end);
    return tensor([shape.length], Int32Array.from(shape));
  },
  Sigmoid: unary((x) => 1 / (1 + Math.exp(-x))),
  Slice: slice,
  Softmax: softmaxOf,
  Split: split,
  Sqrt: unary(Math.sqrt),
  Squeeze: squeeze,
  Sub: binary((a, b) => a - b),
  Tanh: unary(Math.tanh),
  Transpose: transpose,
  Unsqueeze: unsqueeze,
};

/** The graph's constants: whole numbers stand in the text, floats in base64, little-endian. */
function unpacked(graph, base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
  const floats = new Float32Array(bytes.buffer);
  const constants = new Map([["", null]]);
  let start = 0;
  for (const [name, shape, whole] of graph.constants) {
    const count = size(shape);
    const data = whole ? Int32Array.from(whole) : floats.subarray(start, start + count);
    constants.set(name, tensor(shape, data));
    if (!whole) start += count;
  }
  return constants;
}

/** Run the graph on the tensor `images`: the tensor of features, [batch, features]. */
function computed(nodes, constants, images) {
  const values = new Map(constants).set("images", images);
  for (const [operation, inputs, outputs, attributes] of nodes) {
    const found = operations[operation](inputs.map((name) => values.get(name)), attributes);
    [found].flat().forEach((one, n) => values.set(outputs[n], one));
  }
  return values.get("features");
}

/** Embed one image, pixels [S, S, C] of 0 to 255: Float32Array of its features. */
function embedded(model, pixels) {
  const { image_size: side, channels, input } = model.metadata;
  const shape = [1, side, side, channels];
  if (input === "uint8") {
    return computed(model.nodes, model.weights, tensor(shape, Uint8Array.from(pixels))).data;
  }
  const floats = Float32Array.from(pixels, (one) => one * (2 / 255) - 1);
  const images = transpose([tensor(shape, floats)], { perm: [0, 3, 1, 2] });
  return computed(model.nodes, model.weights, images).data;
}
