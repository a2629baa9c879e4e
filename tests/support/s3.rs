//! An S3 on this machine: moto's server, where Python has it.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// A server with a bucket named `bucket`.
pub(crate) struct S3 {
    server: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    port: String,
}

impl S3 {
    /// Starts one; `None` where `TWINLENS_TEST_PYTHON` (or `python3`) has no moto.
    pub(crate) fn start() -> Option<Self> {
        let python = std::env::var("TWINLENS_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
        let has_moto = Command::new(&python).args(["-c", "import moto.server, boto3, flask_cors"]).output();
        if !has_moto.is_ok_and(|output| output.status.success()) {
            eprintln!("skipped: {python} lacks moto, flask or flask_cors");
            return None;
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/support/s3.py");
        let mut server = Command::new(python);
        server.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut server = server.spawn().unwrap();
        let orders = server.stdin.take().unwrap();
        let mut answers = BufReader::new(server.stdout.take().unwrap());
        // The server greets before the port.
        let port = loop {
            let mut line = String::new();
            assert!(answers.read_line(&mut line).unwrap() > 0, "the server has ended");
            if line.trim().parse::<u16>().is_ok() {
                break line.trim().to_string();
            }
        };
        Some(Self { server, orders, answers, port })
    }

    /// Gives a process access to the bucket.
    pub(crate) fn give<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env("AWS_ENDPOINT", format!("http://127.0.0.1:{}", self.port));
        command.env("AWS_ALLOW_HTTP", "true").env("AWS_REGION", "us-east-1");
        command.env("AWS_ACCESS_KEY_ID", "key").env("AWS_SECRET_ACCESS_KEY", "secret")
    }

    /// Gives a process access without credentials: the machine has a service that has none.
    #[cfg(feature = "cluster")]
    pub(crate) fn give_without_keys<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        self.give(command).env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
        command.env("AWS_METADATA_ENDPOINT", format!("http://127.0.0.1:{}/none", self.port))
    }

    /// Ends the server.
    #[cfg(feature = "cluster")]
    pub(crate) fn stop(mut self) {
        self.server.kill().unwrap();
        self.server.wait().unwrap();
    }

    /// Answers nobody for a while.
    #[cfg(feature = "cluster")]
    pub(crate) fn pause(&self, time: std::time::Duration) {
        let signal = |name: &str| {
            let sent = Command::new("kill").args([name, &self.server.id().to_string()]).status().unwrap();
            assert!(sent.success());
        };
        signal("-STOP");
        std::thread::sleep(time);
        signal("-CONT");
    }

    /// Copies all objects of the bucket to a folder, and gives their number.
    pub(crate) fn fetch(&mut self, folder: &Path) -> usize {
        writeln!(self.orders, "fetch {}", folder.display()).unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim().parse().unwrap()
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
