//! What a launcher says of this process in environment variables: mpirun (Open MPI, MPICH, Intel
//! MPI), srun, torchrun, or a script or a Kubernetes job that sets torchrun's.

use crate::error::{RankError, Result};

/// The place of this process among the ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    pub rank: usize,
    pub size: usize,
    /// The number among the ranks of this machine.
    pub local_rank: usize,
    /// Ranks of this machine, if known.
    pub local_size: Option<usize>,
    /// Where rank 0 listens, if the launcher says so.
    pub master: Option<String>,
    pub port: u16,
}

/// The variables of one launcher: rank, size, local rank, local size.
struct Names {
    rank: &'static str,
    size: &'static str,
    local_rank: &'static str,
    local_size: &'static str,
}

/// In the order in which they are tried. A process of torchrun inside a Slurm job has both; the
/// inner launcher counts.
const LAUNCHERS: [Names; 5] = [
    Names { rank: "RANK", size: "WORLD_SIZE", local_rank: "LOCAL_RANK", local_size: "LOCAL_WORLD_SIZE" },
    Names {
        rank: "OMPI_COMM_WORLD_RANK",
        size: "OMPI_COMM_WORLD_SIZE",
        local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
        local_size: "OMPI_COMM_WORLD_LOCAL_SIZE",
    },
    Names {
        rank: "PMI_RANK",
        size: "PMI_SIZE",
        local_rank: "MPI_LOCALRANKID",
        local_size: "MPI_LOCALNRANKS",
    },
    Names {
        rank: "PMIX_RANK",
        size: "SLURM_NTASKS",
        local_rank: "SLURM_LOCALID",
        local_size: "SLURM_NTASKS_PER_NODE",
    },
    Names {
        rank: "SLURM_PROCID",
        size: "SLURM_NTASKS",
        local_rank: "SLURM_LOCALID",
        local_size: "SLURM_NTASKS_PER_NODE",
    },
];

/// torchrun's default.
const PORT: u16 = 29500;

impl Launch {
    /// The place of this process by the environment; `get` reads a variable. `None` without a
    /// launcher.
    ///
    /// # Errors
    /// `Setup` if a variable is not a number, or the rank is not below the size.
    pub fn from_env(get: impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let number = |name: &str| -> Result<Option<usize>> {
            let Some(text) = get(name).filter(|text| !text.trim().is_empty()) else { return Ok(None) };
            let number = text.trim().parse().map_err(|_| {
                RankError::setup(
                    format!("{name} is `{text}`, which is not a number"),
                    "the launcher sets it: start all ranks with mpirun, srun or torchrun",
                )
            });
            number.map(Some)
        };
        for names in &LAUNCHERS {
            let (Some(rank), Some(size)) = (number(names.rank)?, number(names.size)?) else { continue };
            if rank >= size {
                return Err(RankError::setup(
                    format!("{} is {rank}, but {} is {size}", names.rank, names.size),
                    "ranks are counted from 0",
                ));
            }
            let local_rank = number(names.local_rank)?.unwrap_or(if size == 1 { 0 } else { rank });
            let local_size = number(names.local_size)?.filter(|local| (1..=size).contains(local));
            let master = get("MASTER_ADDR").filter(|address| !address.trim().is_empty());
            return Ok(Some(Self { rank, size, local_rank, local_size, master, port: port(&get, &number)? }));
        }
        Ok(None)
    }

    /// Whether all ranks are on this machine, as far as the launcher says.
    pub fn is_one_machine(&self) -> bool {
        self.local_size == Some(self.size)
    }

    /// How many ranks are on this machine, if that is known.
    pub fn ranks_here(&self) -> Option<usize> {
        let loops_back = matches!(self.master.as_deref(), Some("127.0.0.1" | "localhost" | "::1"));
        if loops_back { Some(self.size) } else { self.local_size }
    }
}

fn port(
    get: &impl Fn(&str) -> Option<String>,
    number: &impl Fn(&str) -> Result<Option<usize>>,
) -> Result<u16> {
    let port = number("MASTER_PORT")?.unwrap_or(usize::from(PORT));
    // torchrun's agent listens on the port itself.
    let taken = get("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    u16::try_from(port + usize::from(taken))
        .map_err(|_| RankError::setup(format!("MASTER_PORT is {port}"), "a port is at most 65535"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(variables: &[(&str, &str)]) -> Result<Option<Launch>> {
        let get = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| value.to_string());
        Launch::from_env(get)
    }

    #[test]
    fn every_launcher_is_understood() {
        // The variables, then rank, size, local rank and local size.
        type Case<'a> = (&'a [(&'a str, &'a str)], (usize, usize, usize, Option<usize>));
        let cases: [Case<'_>; 6] = [
            (
                &[("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "4")],
                (5, 8, 1, Some(4)),
            ),
            (
                &[
                    ("OMPI_COMM_WORLD_RANK", "1"),
                    ("OMPI_COMM_WORLD_SIZE", "2"),
                    ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
                    ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
                ],
                (1, 2, 1, Some(2)),
            ),
            (&[("PMI_RANK", "3"), ("PMI_SIZE", "4"), ("MPI_LOCALRANKID", "3")], (3, 4, 3, None)),
            (&[("PMIX_RANK", "7"), ("SLURM_NTASKS", "8"), ("SLURM_LOCALID", "3")], (7, 8, 3, None)),
            (
                &[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "2"), ("SLURM_NTASKS_PER_NODE", "1")],
                (0, 2, 0, Some(1)),
            ),
            // torchrun inside of a Slurm job.
            (
                &[("SLURM_PROCID", "1"), ("SLURM_NTASKS", "2"), ("RANK", "4"), ("WORLD_SIZE", "8")],
                (4, 8, 4, None),
            ),
        ];
        for (variables, (rank, size, local_rank, local_size)) in cases {
            let found = launch(variables).unwrap().unwrap();
            let expected = Launch { rank, size, local_rank, local_size, master: None, port: PORT };
            assert_eq!(found, expected, "{variables:?}");
        }
        assert_eq!(launch(&[("RANK", "1"), ("HOME", "/")]), Ok(None));
    }

    #[test]
    fn wrong_variables_are_named() {
        let message = |variables: &[(&str, &str)]| launch(variables).unwrap_err().to_string();
        assert_eq!(message(&[("RANK", "x"), ("WORLD_SIZE", "2")]), "RANK is `x`, which is not a number");
        assert_eq!(message(&[("RANK", "2"), ("WORLD_SIZE", "2")]), "RANK is 2, but WORLD_SIZE is 2");
        let port = [("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_PORT", "70000")];
        assert_eq!(message(&port), "MASTER_PORT is 70000");
    }

    #[test]
    fn the_port_of_torchruns_agent_is_not_taken() {
        let variables =
            [("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_PORT", "2000"), ("MASTER_ADDR", "node1")];
        let found = launch(&variables).unwrap().unwrap();
        assert_eq!((found.port, found.master.as_deref()), (2000, Some("node1")));
        let agent = [&variables[..], &[("TORCHELASTIC_USE_AGENT_STORE", "True")]].concat();
        assert_eq!(launch(&agent).unwrap().unwrap().port, 2001);
    }
}
