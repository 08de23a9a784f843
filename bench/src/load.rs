//! Drives clients against endpoints and times them.
//!
//! ```text
//!   prepare (fill, grant, watch ...)   warm-up        measured window           tail
//!   ------------------------------|--------------|------------------------|-------------->
//!                               start      record_from                 stop_at
//!                                            CPU read                  CPU read
//! ```
//!
//! * One task per client, each with one request in flight (a *closed* loop), or sent to a timetable
//!   when a rate is asked for. A late answer then delays the client's next requests, whose latency
//!   counts from the time they were due; lateness of our own timer does not count.
//! * Throughput and CPU per operation count what was answered inside the window. Latencies also
//!   hold what was still in flight at its end, so that a stall at the end is not overlooked.
//! * Latencies are kept as plain lists and become a histogram after the run: the client shares the
//!   cores with the servers and must be cheap.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::runtime::Runtime;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until};
use tonic::Status;

use crate::connection::{self, Connection};
use crate::cpu::{self, CpuTimes, Memory};
use crate::error::Error;
use crate::mixes::{self, Kind};
use crate::report;

/// How long requests may stay in flight after the window before they count as lost.
const TAIL: Duration = Duration::from_secs(30);
/// A client waits after an error, so that a refusing server is not flooded.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(10);

/// Arguments of `bench load`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Client URLs, separated by commas; connections go round robin over them, leader first.
    #[arg(long, value_delimiter = ',', required = true)]
    endpoints: Vec<String>,
    /// Name of the mix (see `bench mixes`).
    #[arg(long)]
    mix: String,
    /// Process ids of the servers, separated by commas: tells their CPU and memory.
    #[arg(long, value_delimiter = ',')]
    pids: Vec<u32>,
    /// Appends the figures as one line of JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    #[command(flatten)]
    overrides: Overrides,
}

/// What differs from the mix's usual shape.
#[derive(clap::Args, Clone, Default)]
pub(crate) struct Overrides {
    /// Clients, each with one request in flight.
    #[arg(long)]
    clients: Option<usize>,
    /// HTTP/2 connections, shared evenly by the clients.
    #[arg(long)]
    connections: Option<usize>,
    /// Length of the measured window.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Time under load before the window.
    #[arg(long, default_value_t = 1.0)]
    warmup: f64,
    /// Ends the window early, after so many operations.
    #[arg(long)]
    total: Option<u64>,
    /// Bytes of a value.
    #[arg(long)]
    value_size: Option<usize>,
    /// Different keys.
    #[arg(long)]
    keys: Option<u64>,
    /// Operations per second of all clients together, instead of as many as possible.
    #[arg(long)]
    rate: Option<f64>,
    /// Watchers of the watch mixes.
    #[arg(long)]
    watchers: Option<usize>,
    /// Keys of one range read.
    #[arg(long)]
    span: Option<u64>,
    /// Uncompacted versions of each key that is filled in.
    #[arg(long)]
    versions: Option<u32>,
    /// Threads of the client [default: 1 for one connection, else 2].
    #[arg(long)]
    threads: Option<usize>,
    /// Fills all keys before a mix that does not need it.
    #[arg(long)]
    fill: bool,
}

/// The numbers of a mix.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Shape {
    pub(crate) clients: usize,
    pub(crate) connections: usize,
    pub(crate) value_bytes: usize,
    pub(crate) keys: u64,
    /// Keys of one range read.
    pub(crate) span: u64,
    /// Versions of each key after the filling.
    pub(crate) versions: u32,
    /// Whether all keys are written before the run.
    pub(crate) fill: bool,
    pub(crate) rate: Option<f64>,
    pub(crate) total: Option<u64>,
    pub(crate) watchers: usize,
    /// Keepalives in flight on one stream.
    pub(crate) pipeline: usize,
}

impl Overrides {
    /// Nothing but the times.
    pub(crate) fn timed(seconds: f64, warmup: f64) -> Result<Overrides, Error> {
        let overrides = Overrides { seconds, warmup, ..Overrides::default() };
        overrides.check_times().map(|()| overrides)
    }

    fn check_times(&self) -> Result<(), Error> {
        if self.seconds > 0.0 && self.warmup >= 0.0 {
            return Ok(());
        }
        Err(Error::Usage("seconds must be above 0".to_owned()))
    }

    /// The mix's shape with what the command line changed.
    pub(crate) fn shape(&self, usual: &Shape) -> Result<Shape, Error> {
        let clients = self.clients.unwrap_or(usual.clients);
        let shape = Shape {
            clients,
            connections: self.connections.unwrap_or(usual.connections).min(clients),
            value_bytes: self.value_size.unwrap_or(usual.value_bytes),
            keys: self.keys.unwrap_or(usual.keys),
            span: self.span.unwrap_or(usual.span),
            versions: self.versions.unwrap_or(usual.versions),
            fill: self.fill || usual.fill,
            rate: self.rate.or(usual.rate),
            total: self.total.or(usual.total),
            watchers: self.watchers.unwrap_or(usual.watchers),
            pipeline: usual.pipeline,
        };
        if shape.clients == 0 || shape.connections == 0 || shape.keys == 0 {
            return Err(Error::Usage("clients, connections and keys must be above 0".to_owned()));
        }
        if shape.rate.is_some_and(|rate| rate <= 0.0) {
            return Err(Error::Usage("rate must be above 0".to_owned()));
        }
        self.check_times().map(|()| shape)
    }

    /// How the client drives a shape.
    pub(crate) fn drive(&self, shape: &Shape) -> Drive {
        let threads = self.threads.map_or(Drive::threads(shape), |threads| threads.max(1));
        Drive { timing: self.timing(), threads }
    }

    pub(crate) fn timing(&self) -> Timing {
        Timing {
            warmup: Duration::from_secs_f64(self.warmup),
            measured: Duration::from_secs_f64(self.seconds),
        }
    }

    /// The number of keys asked for, where a mix has no shape.
    pub(crate) fn keys(&self) -> Option<u64> {
        self.keys
    }
}

/// How long a run warms up and is measured.
#[derive(Clone, Copy)]
pub(crate) struct Timing {
    pub(crate) warmup: Duration,
    pub(crate) measured: Duration,
}

/// How the client drives its clients.
#[derive(Clone, Copy)]
pub(crate) struct Drive {
    pub(crate) timing: Timing,
    pub(crate) threads: usize,
}

impl Drive {
    pub(crate) fn new(shape: &Shape, timing: Timing) -> Drive {
        Drive { timing, threads: Drive::threads(shape) }
    }

    /// The client shares the cores with the servers, so it takes few threads: a second one keeps it
    /// from being the limit, but costs a lone connection a hop between threads for each request.
    fn threads(shape: &Shape) -> usize {
        if shape.connections == 1 { 1 } else { 2 }
    }
}

/// The servers of a run.
pub(crate) struct Target {
    pub(crate) endpoints: Vec<String>,
    /// May be empty: then nothing is told about the servers' CPU and memory.
    pub(crate) pids: Vec<u32>,
}

/// What a mix gets to work with.
pub(crate) struct Session {
    pub(crate) connections: Vec<Connection>,
    /// For the preparation, and a writer beside watchers; at the first endpoint.
    pub(crate) side: Connection,
    pub(crate) shape: Shape,
    timing: Timing,
    pids: Vec<u32>,
}

impl Session {
    /// The connection of the nth client.
    pub(crate) fn connection(&self, n: usize) -> &Connection {
        &self.connections[n % self.connections.len()]
    }

    /// Starts the clock of warm-up and window.
    pub(crate) fn open_window(&self) -> Arc<Window> {
        let start = Instant::now();
        let record_from = start + self.timing.warmup;
        Arc::new(Window {
            start,
            record_from,
            stop_at: record_from + self.timing.measured,
            left: self.shape.total.map(|n| AtomicI64::new(n.try_into().unwrap_or(i64::MAX))),
        })
    }
}

/// Runs `bench load`.
pub(crate) async fn command(args: Args) -> Result<(), Error> {
    let mix = mixes::find(&args.mix)?;
    let shape = args.overrides.shape(&mix.shape)?;
    let target = Target { endpoints: args.endpoints, pids: args.pids };
    let figures = measure(mix.kind, &shape, args.overrides.drive(&shape), target).await?;
    print!("{}", report::figures_text(&mix, &shape, &figures));
    if let Some(path) = &args.json {
        let line = report::LoadLine { mix: mix.name, shape: &shape, figures: &figures };
        report::append_json(path, &line)?;
    }
    Ok(())
}

/// Prepares a kind of traffic, runs it, and tells what it took; on a runtime of its own, so that
/// nothing of one run lives on into the next.
pub(crate) async fn measure(
    kind: Kind,
    shape: &Shape,
    drive: Drive,
    target: Target,
) -> Result<Figures, Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(drive.threads)
        .enable_all()
        .build()
        .expect("a runtime can be built");
    let runtime = OwnRuntime(Some(runtime));
    let run = Box::pin(run(kind, shape.clone(), drive.timing, target));
    runtime.spawn(run).await.unwrap_or_else(|crash| Err(Error::Usage(crash.to_string())))
}

async fn run(kind: Kind, shape: Shape, timing: Timing, target: Target) -> Result<Figures, Error> {
    let endpoints = connection::leader_first(&target.endpoints).await?;
    let servers_known = !target.pids.is_empty();
    let session = Session {
        connections: connection::open_all(&endpoints, shape.connections).await?,
        side: Connection::open(&endpoints[0]).await?,
        shape,
        timing,
        pids: target.pids,
    };
    let load_average = cpu::load_average();
    let tally = Box::pin(mixes::run(kind, &session)).await?;
    Ok(Figures::new(tally, load_average, servers_known))
}

/// A runtime that may be dropped inside another one.
struct OwnRuntime(Option<Runtime>);

impl OwnRuntime {
    fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.0.as_ref().expect("taken only by drop").spawn(task)
    }
}

impl Drop for OwnRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

// === Window ===

/// When requests count.
pub(crate) struct Window {
    pub(crate) start: Instant,
    pub(crate) record_from: Instant,
    pub(crate) stop_at: Instant,
    /// Operations that the window may still begin.
    left: Option<AtomicI64>,
}

impl Window {
    /// Whether a request may begin at `now`.
    pub(crate) fn admits(&self, now: Instant) -> bool {
        if now >= self.stop_at {
            return false;
        }
        match &self.left {
            Some(left) if now >= self.record_from => left.fetch_sub(1, Ordering::Relaxed) > 0,
            _ => true,
        }
    }

    /// Whether something finished at `now` belongs to the window's throughput.
    pub(crate) fn counts(&self, now: Instant) -> bool {
        now >= self.record_from && now <= self.stop_at
    }
}

/// What one task saw.
#[derive(Default)]
pub(crate) struct Samples {
    latencies_us: Vec<u32>,
    counted: u64,
    /// Writes that caused the counted operations, where these are not the same.
    pub(crate) writes: u64,
    errors: u64,
    first_error: Option<String>,
}

impl Samples {
    /// Notes an operation that finished at `finished`.
    pub(crate) fn record(&mut self, window: &Window, started: Instant, finished: Instant) {
        if finished >= window.record_from {
            let micros = finished.saturating_duration_since(started).as_micros();
            self.latencies_us.push(u32::try_from(micros).unwrap_or(u32::MAX));
            self.counted += u64::from(finished <= window.stop_at);
        }
    }

    /// Notes a failure; the first one's text is kept.
    pub(crate) fn fail(&mut self, text: impl FnOnce() -> String) {
        self.errors += 1;
        self.first_error.get_or_insert_with(text);
    }

    fn merge(&mut self, other: Samples) {
        self.latencies_us.extend(other.latencies_us);
        self.counted += other.counted;
        self.writes += other.writes;
        self.errors += other.errors;
        self.first_error = self.first_error.take().or(other.first_error);
    }
}

/// One of a mix's clients.
pub(crate) trait Client: Send + 'static {
    /// Does one operation. Returns when the operation that was answered began, if that was before
    /// this call (several in flight).
    fn call(&mut self) -> impl Future<Output = Result<Option<Instant>, Status>> + Send;
}

/// Runs the clients through one window.
pub(crate) async fn drive<C: Client>(session: &Session, clients: Vec<C>) -> Tally {
    let window = session.open_window();
    let count = clients.len();
    let mut tasks = JoinSet::new();
    for (n, client) in clients.into_iter().enumerate() {
        let pace = session.shape.rate.map(|rate| Pace::new(window.start, rate, n, count));
        tasks.spawn(client_loop(client, window.clone(), pace));
    }
    meter(session, &window, tasks).await
}

async fn client_loop(
    mut client: impl Client,
    window: Arc<Window>,
    mut pace: Option<Pace>,
) -> Samples {
    let mut samples = Samples::default();
    let mut now = Instant::now();
    loop {
        if let Some(pace) = &mut pace {
            now = pace.wait(now, window.stop_at).await;
        }
        if !window.admits(now) {
            return samples;
        }
        match client.call().await {
            Ok(earlier) => {
                let finished = Instant::now();
                samples.record(&window, earlier.unwrap_or(now), finished);
                now = finished;
            }
            Err(status) => {
                samples.fail(|| status.to_string());
                sleep(PAUSE_AFTER_ERROR).await;
                now = Instant::now();
            }
        }
    }
}

/// A timetable of one client.
pub(crate) struct Pace {
    due: Instant,
    interval: Duration,
}

impl Pace {
    /// The nth of `count` clients that send `rate` requests a second together, evenly spread.
    pub(crate) fn new(start: Instant, rate: f64, n: usize, count: usize) -> Pace {
        Pace {
            due: start + Duration::from_secs_f64(n as f64 / rate),
            interval: Duration::from_secs_f64(count as f64 / rate),
        }
    }

    /// Waits for the next departure and returns from when its latency counts: from when it was due
    /// if the client was late, from now if only the timer was.
    pub(crate) async fn wait(&mut self, now: Instant, stop_at: Instant) -> Instant {
        let due = self.due;
        self.due += self.interval;
        if now >= due {
            return due;
        }
        sleep_until(due.min(stop_at)).await;
        Instant::now()
    }
}

/// Reads the clocks at both ends of the window while the tasks run, and gathers what they saw.
pub(crate) async fn meter(
    session: &Session,
    window: &Window,
    mut tasks: JoinSet<Samples>,
) -> Tally {
    let mut samples = Samples::default();
    sleep_until(window.record_from).await;
    let (began, before) = (Instant::now(), CpuTimes::read(&session.pids));
    let mut end = None;
    let read_end = || (Instant::now(), CpuTimes::read(&session.pids), Memory::read(&session.pids));
    loop {
        let deadline = if end.is_none() { window.stop_at } else { window.stop_at + TAIL };
        tokio::select! {
            biased;
            () = sleep_until(deadline) => {
                if end.is_some() {
                    let lost = tasks.len();
                    samples.fail(|| format!("{lost} clients got no answer within {TAIL:?}"));
                    break;
                }
                end = Some(read_end());
            }
            task = tasks.join_next() => match task {
                Some(Ok(seen)) => samples.merge(seen),
                Some(Err(crash)) => samples.fail(|| crash.to_string()),
                None => break,
            },
        }
    }
    let (ended, after, memory) = end.unwrap_or_else(read_end);
    Tally { samples, elapsed: ended - began, cpu: after - before, memory }
}

/// What a window yielded.
pub(crate) struct Tally {
    samples: Samples,
    elapsed: Duration,
    cpu: CpuTimes,
    memory: Memory,
}

// === Figures ===

/// The figures of one run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figures {
    pub(crate) ops: u64,
    pub(crate) seconds: f64,
    pub(crate) ops_per_s: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p90_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) max_ms: f64,
    /// CPU of all servers together.
    pub(crate) server_cpu_us_per_op: Option<f64>,
    pub(crate) client_cpu_us_per_op: f64,
    /// Cores in use by the servers, by this client, by everything else on the machine.
    pub(crate) server_cores: f64,
    pub(crate) client_cores: f64,
    pub(crate) other_cores: f64,
    /// What the hypervisor gave to somebody else.
    pub(crate) stolen_cores: f64,
    pub(crate) memory: Option<Memory>,
    /// Watch mixes: the writes whose events are the operations.
    pub(crate) writes_per_s: Option<f64>,
    pub(crate) errors: u64,
    pub(crate) first_error: Option<String>,
    /// Load average just before the run.
    pub(crate) load_average: f64,
}

impl Figures {
    fn new(tally: Tally, load_average: f64, servers_known: bool) -> Figures {
        let Tally { samples, elapsed, cpu, memory } = tally;
        let mut latencies =
            Histogram::<u64>::new_with_bounds(1, u64::from(u32::MAX), 3).expect("valid bounds");
        for &micros in &samples.latencies_us {
            latencies.record(u64::from(micros).max(1)).expect("within the bounds");
        }
        let max_ms = samples.latencies_us.iter().max().map_or(0.0, |&us| f64::from(us) / 1e3);
        // The histogram's buckets have widths; no quantile is above the greatest value.
        let at = |quantile| (latencies.value_at_quantile(quantile) as f64 / 1e3).min(max_ms);
        let per_op = |us: u64| us as f64 / samples.counted.max(1) as f64;
        let seconds = elapsed.as_secs_f64();
        let cores = |us: u64| us as f64 / 1e6 / seconds;
        let idle_cores = cores(cpu.idle_us + cpu.stolen_us);
        let ours = cores(cpu.servers_us + cpu.client_us);
        Figures {
            ops: samples.counted,
            seconds,
            ops_per_s: samples.counted as f64 / seconds,
            p50_ms: at(0.5),
            p90_ms: at(0.9),
            p99_ms: at(0.99),
            max_ms,
            server_cpu_us_per_op: servers_known.then(|| per_op(cpu.servers_us)),
            client_cpu_us_per_op: per_op(cpu.client_us),
            server_cores: cores(cpu.servers_us),
            client_cores: cores(cpu.client_us),
            other_cores: (cpu::cores() as f64 - idle_cores - ours).max(0.0),
            stolen_cores: cores(cpu.stolen_us),
            memory: servers_known.then_some(memory),
            writes_per_s: (samples.writes > 0).then(|| samples.writes as f64 / seconds),
            errors: samples.errors,
            first_error: samples.first_error,
            load_average,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(total: Option<i64>) -> Window {
        let start = Instant::now();
        let record_from = start + Duration::from_secs(1);
        let stop_at = start + Duration::from_secs(2);
        Window { start, record_from, stop_at, left: total.map(AtomicI64::new) }
    }

    #[test]
    fn only_answers_inside_the_window_count_but_late_ones_show_their_latency() {
        let window = window(None);
        let mut samples = Samples::default();
        for finished_ms in [500, 1500, 2500] {
            let finished = window.start + Duration::from_millis(finished_ms);
            samples.record(&window, window.start, finished);
        }
        assert_eq!(samples.counted, 1);
        assert_eq!(samples.latencies_us, [1_500_000, 2_500_000]);
    }

    #[test]
    fn a_total_is_not_used_up_by_the_warm_up() {
        let window = window(Some(1));
        let inside = window.record_from;
        assert!(window.admits(window.start) && window.admits(window.start));
        assert!(window.admits(inside) && !window.admits(inside));
        assert!(!window.admits(window.stop_at));
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_client_is_timed_from_when_it_was_due() {
        let start = Instant::now();
        let far = start + Duration::from_secs(60);
        let mut pace = Pace::new(start, 10.0, 1, 2);
        let first = pace.wait(start, far).await;
        assert_eq!(first - start, Duration::from_millis(100));
        let late = pace.wait(start + Duration::from_secs(5), far).await;
        assert_eq!(late - start, Duration::from_millis(300));
    }
}
