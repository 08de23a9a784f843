//! What an allocation and a free cost: the segregated freelist against two linear ones.
//!
//! *Pages* is a sorted list of all free pages, as B+tree stores keep it; *spans* a sorted list of
//! free spans. Both are walked for the first fit.
//!
//! All begin with the same free pages, which a random life left behind: a file is filled with
//! extents, and random ones are freed until a quarter of it is free. Then random extents are freed
//! and others of random lengths take their place; each list is given the same lengths. Everything
//! is in memory; one thread, no disk. Figures are CPU time, because machines are shared.
//!
//! `cargo run --release -p bench --bin freelist`

use std::fs;
use std::time::Duration;

use shard::extents::freelist::Freelist;
use shard::extents::linear::Linear;

/// Free pages at the start of each line of the table.
const FREE_PAGES: [u32; 3] = [10_000, 100_000, 1_000_000];
/// One free page to so many pages of the file.
const PAGES_PER_FREE: u32 = 4;
/// Rounds of a measurement; the table shows the median.
const ROUNDS: usize = 3;
/// A round ends after so many pairs of an allocation and a free, or after `ROUND_TIME`.
const PAIRS: u32 = 200_000;
/// Pairs between two looks at the clock.
const LOOK_PAIRS: u32 = 100;
const ROUND_TIME: Duration = Duration::from_secs(2);

fn main() {
    println!("| lengths in pages | free pages | free spans | pages | spans | segregated |");
    println!("|---|---|---|---|---|---|");
    for mix in [Mix { name: "1-4", draw: small }, Mix { name: "1-3, 4-31, 64-319", draw: mixed }] {
        for free in FREE_PAGES {
            let start = Start::new(free, mix.draw);
            let mut figures = [Vec::new(), Vec::new(), Vec::new()];
            for round in 0..ROUNDS as u64 {
                let [pages, linear, segregated] = &mut figures;
                pages.push(start.measure(start.page_list(), mix.draw, round));
                linear.push(start.measure(start.linear(), mix.draw, round));
                segregated.push(start.measure(start.segregated.clone(), mix.draw, round));
            }
            let [pages, linear, segregated] = figures.map(median);
            let (name, spans) = (mix.name, start.segregated.spans().len());
            println!(
                "| {name} | {free} | {spans} | {pages:.2} ({:.0}x) | {linear:.2} ({:.0}x) \
                 | {segregated:.2} |",
                pages / segregated,
                linear / segregated
            );
        }
    }
    println!("\nµs of CPU per allocation and free, median of {ROUNDS} rounds");
}

/// How long extents are.
struct Mix {
    name: &'static str,
    draw: fn(&mut Random) -> u32,
}

fn small(random: &mut Random) -> u32 {
    1 + random.below(4)
}

/// 70% short, 20% middle, 10% long.
fn mixed(random: &mut Random) -> u32 {
    match random.below(10) {
        0..=6 => 1 + random.below(3),
        7 | 8 => 4 + random.below(28),
        _ => 64 + random.below(256),
    }
}

/// A file with extents in it.
struct Start {
    pages: u32,
    segregated: Freelist,
    /// Extents as (first page, pages).
    extents: Vec<(u32, u32)>,
}

impl Start {
    fn new(free: u32, draw: fn(&mut Random) -> u32) -> Self {
        let mut random = Random(1);
        let pages = free * PAGES_PER_FREE;
        let mut list = Freelist::new(pages);
        list.extend(pages);
        let mut extents = Vec::new();
        loop {
            let length = draw(&mut random);
            let Some(start) = list.allocate(length) else { break };
            extents.push((start, length));
        }
        while list.free_pages() < free {
            let (start, length) = extents.swap_remove(random.below(extents.len() as u32) as usize);
            list.free(start, length);
        }
        Self { pages, segregated: list, extents }
    }

    fn linear(&self) -> Linear {
        Linear::with_spans(self.pages, self.segregated.spans())
    }

    fn page_list(&self) -> PageList {
        let spans = self.segregated.spans();
        PageList(spans.into_iter().flat_map(|(start, pages)| start..start + pages).collect())
    }

    /// µs per pair of an allocation and a free.
    fn measure(&self, mut list: impl List, draw: fn(&mut Random) -> u32, round: u64) -> f64 {
        let mut random = Random(2 + round);
        let mut extents = self.extents.clone();
        let begin = cpu_time();
        let mut pairs = 0;
        while pairs < PAIRS && (pairs % LOOK_PAIRS != 0 || cpu_time() - begin < ROUND_TIME) {
            exchange(&mut list, &mut extents, draw, &mut random);
            pairs += 1;
        }
        (cpu_time() - begin).as_secs_f64() * 1e6 / f64::from(pairs)
    }
}

/// Frees one extent and allocates another.
fn exchange(
    list: &mut impl List,
    extents: &mut Vec<(u32, u32)>,
    draw: fn(&mut Random) -> u32,
    random: &mut Random,
) {
    let (start, length) = extents.swap_remove(random.below(extents.len() as u32) as usize);
    list.free(start, length);
    let length = draw(random);
    if let Some(start) = list.allocate(length) {
        extents.push((start, length));
    }
}

/// What both lists do.
trait List {
    fn allocate(&mut self, pages: u32) -> Option<u32>;
    fn free(&mut self, start: u32, pages: u32);
}

impl List for Linear {
    fn allocate(&mut self, pages: u32) -> Option<u32> {
        Linear::allocate(self, pages)
    }

    fn free(&mut self, start: u32, pages: u32) {
        Linear::free(self, start, pages);
    }
}

impl List for Freelist {
    fn allocate(&mut self, pages: u32) -> Option<u32> {
        Freelist::allocate(self, pages)
    }

    fn free(&mut self, start: u32, pages: u32) {
        Freelist::free(self, start, pages);
    }
}

/// Free pages one by one, ascending.
struct PageList(Vec<u32>);

impl List for PageList {
    fn allocate(&mut self, pages: u32) -> Option<u32> {
        let (mut first, mut end) = (0, 0);
        let found = self.0.iter().enumerate().find_map(|(at, page)| {
            if *page != end {
                first = at;
            }
            end = page + 1;
            (at + 1 - first == pages as usize).then_some(end - pages)
        })?;
        self.0.drain(first..first + pages as usize);
        Some(found)
    }

    fn free(&mut self, start: u32, pages: u32) {
        let at = self.0.partition_point(|page| *page < start);
        self.0.splice(at..at, start..start + pages);
    }
}

/// Time that this thread has been running.
fn cpu_time() -> Duration {
    let stat = fs::read_to_string("/proc/thread-self/schedstat").expect("this is Linux");
    let nanos = stat.split(' ').next().and_then(|field| field.parse().ok());
    Duration::from_nanos(nanos.expect("its first field is the time on a CPU"))
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A small generator, so that all runs do the same.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (((self.0 >> 32) * u64::from(bound)) >> 32) as u32
    }
}
