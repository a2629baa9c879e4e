use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: twinlens::Allocator = twinlens::Allocator;

fn main() -> ExitCode {
    twinlens::main(twinlens::registry())
}
