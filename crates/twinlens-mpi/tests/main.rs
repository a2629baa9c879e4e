//! The operations of ranks over MPI: the test starts itself by `mpirun`.

#![allow(clippy::expect_used, reason = "tests")]

#[cfg(feature = "mpi")]
fn main() {
    if std::env::var_os("OMPI_COMM_WORLD_SIZE").is_some() {
        return test_rank();
    }
    let program = std::env::current_exe().expect("this program");
    for ranks in ["1", "2", "3", "4"] {
        let mut command = std::process::Command::new("mpirun");
        command.args(["--allow-run-as-root", "--oversubscribe", "-np", ranks]).arg(&program);
        let status = command.status().expect("mpirun");
        assert!(status.success(), "{ranks} ranks: {status}");
    }
}

#[cfg(feature = "mpi")]
fn test_rank() {
    let joined = twinlens_mpi::join("test").expect("MPI");
    let (rank, size) = (joined.ranks.rank(), joined.ranks.size());
    for length in [0, 1, 2, 3, 5, 4095, 100_003] {
        operations(&*joined.ranks, length);
    }
    assert!(joined.local_rank < joined.local_size && joined.local_size <= size);
    if rank == 0 {
        std::thread::sleep(std::time::Duration::from_millis(50));
        joined.ranks.wake().expect("wake");
    } else {
        joined.ranks.sleep().expect("sleep");
    }
    joined.ranks.barrier().expect("barrier");
    joined.ranks.close();
    println!("rank {rank} of {size} ok");
}

/// Numbers of all magnitudes, so that every order of adding them gives other bits.
#[cfg(feature = "mpi")]
fn noise(rank: usize, length: usize) -> Vec<f32> {
    let mut state = 77 + rank as u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let exponent = (state >> 5) % 20;
        ((state >> 8) as f32 / (1 << 23) as f32 - 1.0) * (1 << exponent) as f32
    };
    (0..length).map(|_| next()).collect()
}

#[cfg(feature = "mpi")]
fn operations(ranks: &dyn twinlens_ranks::Collective, length: usize) {
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    let all: Vec<Vec<f32>> = (0..ranks.size()).map(|rank| noise(rank, length)).collect();
    let own = &all[ranks.rank()];
    assert!(bits(&ranks.all_gather(own).expect("all_gather")) == bits(&all.concat()));
    let mut sums = own.clone();
    ranks.all_reduce_sum(&mut sums).expect("all_reduce_sum");
    let in_order = |i: usize| all.iter().fold(0.0, |sum: f32, values| sum + values[i]);
    assert!(bits(&sums) == bits(&(0..length).map(in_order).collect::<Vec<_>>()), "sums of {length}");
    let mut first = own.clone();
    ranks.broadcast(&mut first).expect("broadcast");
    assert!(bits(&first) == bits(&all[0]));
    assert!(ranks.any(ranks.rank() + 1 == ranks.size()).expect("any") && !ranks.any(false).expect("any"));
    let bytes = vec![ranks.rank() as u8; length % 7 * ranks.rank()];
    let gathered = ranks.all_gather_bytes(&bytes).expect("all_gather_bytes");
    let is_right = |(rank, bytes): (usize, &Vec<u8>)| *bytes == vec![rank as u8; length % 7 * rank];
    assert!(gathered.iter().enumerate().all(is_right));
}

#[cfg(not(feature = "mpi"))]
fn main() {
    let error = twinlens_mpi::join("test").expect_err("no MPI");
    assert_eq!(error.to_string(), "this program was built without MPI");
}
