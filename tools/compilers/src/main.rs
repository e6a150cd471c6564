//! Static proofs on real compilers: every variant of the kernels through DXC and through Mesa's RADV, without the
//! hardware of either.

mod dxc;
mod radv;
mod shapes;
mod translate;

use std::num::NonZero;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// Where Debian's Mesa puts it.
const ICD: &str = "/usr/share/vulkan/icd.d/radeon_icd.x86_64.json";

#[derive(Parser)]
#[command(about, long_about = None)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compile every variant to DXIL.
    Dxc {
        /// The DirectX shader compiler's shared library.
        #[arg(long, value_name = "FILE")]
        library: PathBuf,
        /// Compile one of so many variants only, for a quick look.
        #[arg(long, value_name = "N", default_value_t = NonZero::<usize>::MIN)]
        every: NonZero<usize>,
    },
    /// Compile what plans choose for AMD families, and hold registers, waves and widths to their targets.
    Radv {
        /// Compare with the table: the default.
        #[arg(long, conflicts_with = "write")]
        check: bool,
        /// Write the table anew.
        #[arg(long)]
        write: bool,
        /// The table.
        #[arg(long, value_name = "FILE", default_value = "benches/results/radv.md")]
        table: PathBuf,
        /// The file that describes RADV to the Vulkan loader.
        #[arg(
            long,
            value_name = "FILE",
            default_value = ICD
        )]
        icd: PathBuf,
    },
    /// Print the assembly of variants that plans choose, by a part of their names in the table.
    Isa {
        /// A part of the name.
        variant: String,
        /// navi21, gfx1100, vega10, or what else this Mesa's RADV_FORCE_FAMILY knows.
        #[arg(long, default_value = "navi21")]
        family: String,
        /// The file that describes RADV to the Vulkan loader.
        #[arg(long, value_name = "FILE", default_value = ICD)]
        icd: PathBuf,
    },
    /// `isa`, in the environment that it sets.
    #[command(hide = true)]
    RadvAssembly {
        /// A part of the name.
        variant: String,
    },
    /// One family's part of `radv`, in the environment that it sets.
    #[command(hide = true)]
    RadvFamily,
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Dxc { library, every } => dxc::run(&library, every.get()),
        Command::Radv {
            write, table, icd, ..
        } => radv::run(
            if write {
                radv::Mode::Write
            } else {
                radv::Mode::Check
            },
            &table,
            &icd,
        ),
        Command::Isa {
            variant,
            family,
            icd,
        } => radv::show(&icd, &family, &variant),
        Command::RadvAssembly { variant } => radv::assembly(&variant),
        Command::RadvFamily => radv::family(),
    }
}
