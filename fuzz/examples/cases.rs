//! Goes through cases of a seed: where coverage does not guide, but speed does.

use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use wgpu_batchnorm_fuzz::{Outcome, Random, differential, encode, files, plan};

#[derive(Parser)]
#[command(about = "Runs fuzz cases of a seed, until there were so many or the time is up")]
struct Args {
    /// What to run.
    #[arg(long)]
    target: Target,
    /// How many cases.
    #[arg(long, default_value_t = u64::MAX)]
    count: u64,
    /// For how long.
    #[arg(long)]
    seconds: Option<f64>,
    /// Which cases.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The number of the first case, to repeat one.
    #[arg(long, default_value_t = 0)]
    first: u64,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Target {
    /// Plans alone, and each thousandth case one that binds and encodes.
    Plan,
    /// Plans that are bound and encoded on the no-op device.
    Encode,
    /// Tensor files.
    Files,
    /// The adapter against the reference.
    Differential,
}

fn run(args: &Args, case: u64) -> Outcome {
    /// Of plans, each such one is bound and encoded.
    const ENCODED: u64 = 1000;
    /// Neighbours that share what changes kernels, whose compilation takes longer than all else.
    const FAMILY: u64 = 64;
    let mut random = Random::new(args.seed, case);
    let mut pick = |n| random.pick(n);
    match args.target {
        Target::Plan if case % ENCODED != ENCODED - 1 => plan::run(&mut pick),
        Target::Plan | Target::Encode => encode::run(&mut pick),
        Target::Files => files::arbitrary(&mut pick),
        Target::Differential => {
            let mut random = Random::new(!args.seed, case / FAMILY);
            let family = differential::Family::new(&mut |n| random.pick(n));
            differential::run_in(&family, &mut pick)
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let name = args.target.to_possible_value().expect("none is hidden");
    let name = name.get_name();
    let begun = Instant::now();
    let until = args.seconds.map(Duration::from_secs_f64);
    let (mut done, mut refused, mut slowest) = (0u64, 0u64, (Duration::ZERO, 0));
    let mut before = begun;
    for case in args.first..args.first.saturating_add(args.count) {
        match panic::catch_unwind(AssertUnwindSafe(|| run(&args, case))) {
            Ok(Outcome::Done) => done += 1,
            Ok(Outcome::Refused) => refused += 1,
            Err(_) => {
                eprintln!(
                    "to repeat: --target {name} --seed {} --first {case} --count 1",
                    args.seed
                );
                return ExitCode::FAILURE;
            }
        }
        let now = Instant::now();
        slowest = slowest.max((now - before, case));
        before = now;
        if until.is_some_and(|until| now - begun >= until) {
            break;
        }
    }
    let (cases, seconds) = (done + refused, begun.elapsed().as_secs_f64());
    println!(
        "{name}: {cases} cases in {seconds:.1} s, {:.0} a second; {refused} of them refused by design; \
         the slowest, {}, took {:.3} s",
        cases as f64 / seconds,
        slowest.1,
        slowest.0.as_secs_f64()
    );
    ExitCode::SUCCESS
}
