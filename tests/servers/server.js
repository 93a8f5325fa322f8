// Takes its listening socket from file descriptor 3, and finishes what it has when it is told to end.
const http = require('http');

const server = http.createServer((_, answer) => {
  answer.setHeader('x-worker', '0');
  answer.end(JSON.stringify({ worker: 0, pid: process.pid }));
});
server.listen({ fd: 3 });
process.on('SIGTERM', () => server.close(() => process.exit(0)));
