//! The two sides of a comparison: which programs, and where they run.

use std::path::PathBuf;

use crate::cpu;
use crate::error::Error;
use crate::servers::{Kind, System};

/// Arguments of all commands that start servers.
#[derive(clap::Args)]
// A group of arguments is named after its struct by default, and commands have an `Args` too.
#[group(id = "sides")]
pub(crate) struct Args {
    /// Atoll's program [default: `atoll` beside this program].
    #[arg(long)]
    atoll_bin: Option<PathBuf>,
    /// etcd's program [default: ${ATOLL_PEERS:-$HOME/.cache/atoll-peers}/bin/etcd].
    #[arg(long)]
    etcd_bin: Option<PathBuf>,
    /// Compares with another build of Atoll instead of etcd; goals are not judged then.
    #[arg(long, conflicts_with = "control")]
    peer_atoll_bin: Option<PathBuf>,
    /// Runs etcd on both sides: the ratios then show what noise alone does.
    #[arg(long)]
    control: bool,
    /// Where data folders are made; must be on a real disk.
    #[arg(long, default_value = "/var/tmp")]
    work_dir: PathBuf,
}

/// What is compared, and where.
pub(crate) struct Sides {
    /// The first is Atoll unless this is a control.
    pub(crate) systems: [System; 2],
    /// Whether the yardstick's goals apply, which are for Atoll against etcd.
    pub(crate) judged: bool,
    pub(crate) work_dir: PathBuf,
    pub(crate) file_system: String,
}

impl Args {
    /// Looks for the programs and the folder.
    pub(crate) fn find(&self) -> Result<Sides, Error> {
        let systems = self.systems();
        for system in &systems {
            if !system.program.is_file() {
                let missing = system.program.display();
                return Err(Error::Usage(format!("{}: there is no {missing}", system.label)));
            }
        }
        let work_dir =
            self.work_dir.canonicalize().map_err(Error::file("find folder", &self.work_dir))?;
        let file_system = cpu::file_system(&work_dir);
        if ["tmpfs", "ramfs"].contains(&file_system.as_str()) {
            let place = work_dir.display();
            return Err(Error::Usage(format!(
                "{place} is {file_system}: choose a real --work-dir"
            )));
        }
        let judged = !self.control && self.peer_atoll_bin.is_none();
        Ok(Sides { systems, judged, work_dir, file_system })
    }

    fn systems(&self) -> [System; 2] {
        let etcd = || System {
            label: "etcd".to_owned(),
            kind: Kind::Etcd,
            program: self.etcd_bin.clone().unwrap_or_else(default_etcd),
        };
        let atoll =
            |label: &str, program| System { label: label.to_owned(), kind: Kind::Atoll, program };
        let ours = || atoll("atoll", self.atoll_bin.clone().unwrap_or_else(default_atoll));
        match &self.peer_atoll_bin {
            _ if self.control => [System { label: "etcd (control)".to_owned(), ..etcd() }, etcd()],
            Some(program) => [ours(), atoll("other atoll", program.clone())],
            None => [ours(), etcd()],
        }
    }
}

fn default_atoll() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    own.with_file_name("atoll")
}

fn default_etcd() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
    let cache = std::env::var_os("ATOLL_PEERS").filter(|folder| !folder.is_empty());
    cache.map_or_else(|| home().join(".cache/atoll-peers"), PathBuf::from).join("bin/etcd")
}
