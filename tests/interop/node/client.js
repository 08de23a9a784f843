// The npm package etcd3: JavaScript's own gRPC.
//
//   node client.js http://HOST:PORT

'use strict';
const { Etcd3 } = require('etcd3');
const { isDeepStrictEqual, inspect } = require('node:util');

const endpoint = process.argv[2];
const prefix = `~node/${process.pid}-${Date.now()}/`;
const etcd = new Etcd3({ hosts: endpoint });
const client = etcd.namespace(prefix);
let checks = 0;

function fail(what, ...facts) {
  console.error(`FAIL: ${what}`, ...facts.map((fact) => `\n  ${fact}`));
  process.exit(1);
}
function check(condition, what, ...facts) {
  if (!condition) fail(what, ...facts.map((fact) => inspect(fact)));
  checks += 1;
}
function same(what, wanted, got) {
  if (!isDeepStrictEqual(wanted, got)) fail(what, `wanted: ${inspect(wanted)}`, `got:    ${inspect(got)}`);
  checks += 1;
}
async function refused(what, pattern, act) {
  try {
    await act();
  } catch (error) {
    check(pattern.test(`${error.constructor.name}: ${error.message}`), what, error);
    return;
  }
  fail(what, 'wanted a refusal, got none');
}
async function eventually(seconds, what, condition) {
  const end = Date.now() + 3 * seconds * 1000;
  while (!(await condition())) {
    if (Date.now() > end) fail(`${what}: not within ${seconds} s`);
    await new Promise((next) => setTimeout(next, 20));
  }
  checks += 1;
}
const revision = async () => Number((await client.get('none').exec()).header.revision);

async function kv() {
  const first = Number((await client.put('a').value('1')).header.revision);
  same('put', first + 1, Number((await client.put('a').value('2').exec()).header.revision));
  same('put with previous', '2', (await client.put('a').value('3').getPrevious()).value.toString());
  same('get', '3', await client.get('a').string());
  same('get a number', 3, await client.get('a').number());
  same('get of nothing', null, await client.get('nothing').string());
  same('exists', [true, false], [await client.get('a').exists(), await client.get('nothing').exists()]);
  same('get of an old revision', '1', await client.get('a').revision(first).string());
  same('a serializable get', '3', await client.get('a').serializable(true).string());
  await client.put('a').touch();
  const kv = (await client.get('a').exec()).kvs[0];
  same('touch keeps the value', ['3', '4', String(first)], [kv.value.toString(), kv.version, kv.create_revision]);
  const bytes = Buffer.from(Array.from({ length: 256 }, (_, i) => i));
  await client.put('bytes').value(bytes);
  check(bytes.equals(await client.get('bytes').buffer()), 'all byte values');
  await client.put('json').value(JSON.stringify({ x: [1, 2] }));
  same('JSON', { x: [1, 2] }, await client.get('json').json());
  await Promise.all(Array.from({ length: 100 }, (_, i) => client.put(`r/${String(i).padStart(2, '0')}`).value(100 - i)));
  const all = await client.getAll().prefix('r/').numbers();
  same('getAll', 100, Object.keys(all).length);
  same('its values', 58, all['r/42']);
  same('keys', ['r/00', 'r/01', 'r/02'], (await client.getAll().prefix('r/').limit(3).keys()));
  same('count', 100, await client.getAll().prefix('r/').count());
  same('a range', ['r/10', 'r/11'], await client.getAll().inRange({ start: 'r/10', end: 'r/12' }).keys());
  same('sorted', ['r/99', 'r/98'], await client.getAll().prefix('r/').sort('Key', 'Descend').limit(2).keys());
  same('sorted by value', ['1', '10', '100'], Object.values(await client.getAll().prefix('r/').sort('Value', 'Ascend').limit(3).strings()));
  const late = Number((await client.put('r/50').value('x')).header.revision);
  same('filtered by revision', ['r/50'], await client.getAll().prefix('r/').minModRevision(late).keys());
  same('delete with previous', ['x'], (await client.delete().key('r/50').getPrevious()).map((it) => it.value.toString()));
  same('delete of a range', '2', (await client.delete().inRange({ start: 'r/10', end: 'r/12' })).deleted);
  same('delete of a prefix', '97', (await client.delete().prefix('r/')).deleted);
  const before = await revision();
  same('delete of nothing', '0', (await client.delete().key('nothing')).deleted);
  same('adds no revision', before, await revision());
  await refused('an empty key', /key is not provided/, () => etcd.put('').value('x').exec());
  await refused('get of the future', /required revision is a future revision/, () => client.get('a').revision(before + 1000).string());
}

async function transactions() {
  await client.put('t/a').value('1');
  const done = await client
    .if('t/a', 'Value', '==', '1')
    .and('t/a', 'Version', '>', 0)
    .and('t/b', 'Create', '==', 0)
    .then(client.put('t/b').value('2'), client.get('t/b'), client.delete().key('t/a'))
    .else(client.get('t/a'))
    .commit();
  same('transaction', [true, 3], [done.succeeded, done.responses.length]);
  same('reads its own write', '2', done.responses[1].response_range.kvs[0].value.toString());
  same('in one revision', done.header.revision, (await client.get('t/b').exec()).kvs[0].mod_revision);
  const not = await client.if('t/b', 'Mod', '<', 1).then(client.put('t/b').value('x')).else(client.get('t/b')).commit();
  same('its other branch', [false, '2'], [not.succeeded, not.responses[0].response_range.kvs[0].value.toString()]);
  await refused('a key twice', /duplicate key given in txn request/, () =>
    client.if('t/a', 'Create', '==', 0).then(client.put('t/x').value(1), client.put('t/x').value(2)).commit());
  // Ten of the package's own software transactions at once; what they write must
  // not be newer than what they read, so both keys begin at one revision.
  await client.if('t/count', 'Create', '==', 0).then(client.put('t/count').value(0), client.put('t/other').value(0)).commit();
  await Promise.all(Array.from({ length: 10 }, () =>
    client.stm({ retries: 100 }).transact(async (tx) => {
      const count = await tx.get('t/count').number();
      await tx.put('t/count').value(count + 1);
      await tx.put('t/other').value(-count - 1);
    })));
  same('ten increments', [10, -10], [await client.get('t/count').number(), await client.get('t/other').number()]);
}

async function watches() {
  const start = Number((await client.put('w/a').value('1')).header.revision);
  await client.put('w/a').value('2');
  await client.delete().key('w/a');
  const story = [];
  const history = await client.watch().prefix('w/').startRevision(String(start)).withPreviousKV().create();
  history.on('put', (kv, previous) => story.push(`PUT ${kv.key} ${kv.value} was ${previous ? previous.value : 'none'}`));
  history.on('delete', (kv, previous) => story.push(`DELETE ${kv.key} was ${previous.value}`));
  await eventually(10, 'watch replays history', () => story.length >= 3);
  same('its events', ['PUT w/a 1 was none', 'PUT w/a 2 was 1', 'DELETE w/a was 2'], story);
  await client.put('w/b').value('live');
  await eventually(10, 'watch follows', () => story.includes('PUT w/b live was none'));
  await history.cancel();

  // create() returns when the server has created the watch.
  const seen = [];
  const puts = await client.watch().key('w/c').only('put').create();
  puts.on('data', (answer) => seen.push(...answer.events.map((event) => `${event.type} ${event.kv.value}`)));
  await client.put('w/c').value('1');
  await client.delete().key('w/c');
  await client.put('w/d').value('other key');
  await client.put('w/c').value('2');
  await eventually(10, 'watch of a key', () => seen.length >= 2);
  same('its puts alone', ['Put 1', 'Put 2'], seen);
  await puts.cancel();
  await client.put('w/c').value('3');

  const many = await Promise.all(Array.from({ length: 30 }, (_, i) => client.watch().key(`w/many/${i}`).create()));
  const got = new Set();
  many.forEach((watcher, i) => watcher.on('put', (kv) => got.add(`${i} ${kv.value}`)));
  await Promise.all(many.map((_, i) => client.put(`w/many/${i}`).value(i)));
  await eventually(10, 'thirty watches on a stream', () => got.size === 30);
  check(many.every((_, i) => got.has(`${i} ${i}`)), 'each its own', got);
  same('a cancelled watch is silent', 2, seen.length);
  await Promise.all(many.map((watcher) => watcher.cancel()));
}

async function leases() {
  const lease = client.lease(30);
  const id = await lease.grant();
  check(/^\d+$/.test(id), 'lease', id);
  await lease.put('l/a').value('1');
  same("the key's lease", id, (await client.get('l/a').exec()).kvs[0].lease);
  same('keepalive', '30', (await lease.keepaliveOnce()).TTL);
  const left = await etcd.leaseClient.leaseTimeToLive({ ID: id, keys: true });
  same('attached keys', [`${prefix}l/a`], left.keys.map(String));
  await lease.revoke();
  same('revoke deletes the key', null, await client.get('l/a').string());
  await refused('a put with the revoked lease', /requested lease not found/, () => client.put('l/a').value('1').lease(id).exec());

  // The package keeps a lease alive by itself, until it is told to let go.
  const kept = client.lease(4);
  let beats = 0;
  kept.on('keepaliveSucceeded', () => (beats += 1));
  await kept.put('l/kept').value('1');
  await eventually(15, 'a lease is kept alive', () => beats >= 3);
  same('and its key with it', '1', await client.get('l/kept').string());
  const begun = Date.now();
  kept.release();
  await eventually(15, 'a lease let go expires', async () => !(await client.get('l/kept').exists()));
  check(Date.now() - begun >= 500, 'but not at once');
}

async function locks() {
  const lock = client.lock('lock').ttl(10);
  await lock.acquire();
  await refused('a held lock', /EtcdLockFailedError/, () => client.lock('lock').acquire());
  await lock.release();
  same('do', 'done', await client.lock('lock').do(() => 'done'));

  const election = client.election('leader', 10);
  const first = election.campaign('one');
  await first.wait();
  same('leader', 'one', await election.leader());
  const observer = await election.observe();
  const seen = [observer.leader()];
  observer.on('change', (leader) => seen.push(leader));
  await first.proclaim('one, again');
  await eventually(10, 'observe sees the proclamation', () => seen.includes('one, again'));
  const second = election.campaign('two');
  let elected = false;
  second.on('elected', () => (elected = true));
  await second.getCampaignKey();
  check(!elected, 'a second candidate waits');
  await first.resign();
  await eventually(10, 'and is elected', () => elected);
  await eventually(10, 'observe sees it', () => seen.includes('two'));
  same('leader', 'two', await election.leader());
  await observer.cancel();
  await second.resign();
}

async function cluster() {
  const members = await etcd.cluster.memberList({});
  check(members.members.length >= 1 && members.members.every((member) => member.clientURLs.length > 0), 'members', members);
  const status = await etcd.maintenance.status({});
  check(/^3\.\d+\.\d+$/.test(status.version) && members.members.some((member) => member.ID === status.leader), 'status', status);
  same('alarms', [], (await etcd.maintenance.alarm({})).alarms);
}

async function main() {
  for (const part of [kv, transactions, watches, leases, locks, cluster]) await part();
  await client.delete().all();
  etcd.close();
  console.log(`ok ${checks} checks`);
  process.exit(0);
}
setTimeout(() => fail('not done within 240 s'), 240000).unref();
main().catch((error) => fail('an unforeseen error', error.stack));
