// The worker that runs the models.

const worker = new Worker('worker.js', { type: 'module' });
const waiting = new Map();

worker.addEventListener('message', ({ data: { id, error, ...answer } }) => {
  const { resolve, reject } = waiting.get(id);
  waiting.delete(id);
  if (error) reject(new Error(error));
  else resolve(answer);
});
let broken = '';
worker.addEventListener('error', (event) => {
  broken = event.message || 'the worker could not be started';
  for (const { reject } of waiting.values()) reject(new Error(broken));
  waiting.clear();
});

/** Ask for one of the worker's tasks. */
export function ask(task, request = {}) {
  if (broken) return Promise.reject(new Error(broken));
  const id = crypto.randomUUID?.() ?? String(Math.random());
  return new Promise((resolve, reject) => {
    waiting.set(id, { resolve, reject });
    worker.postMessage({ id, task, ...request });
  });
}
