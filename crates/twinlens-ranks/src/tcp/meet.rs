//! How the processes find each other: all connect to rank 0, which tells each where the others
//! listen. Both ends of every connection prove that they know the token.

use super::peer::{Goodbye, Peer};
use super::ranks::Tcp;
use crate::error::{RankError, Result};
use crate::launch::Launch;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// How processes meet.
#[derive(Clone, Debug)]
pub struct Meeting {
    pub launch: Launch,
    /// A secret that all ranks know. Only ranks of one machine may do without.
    pub token: Option<String>,
    /// Tells programs apart that could compute other numbers.
    pub build: String,
    /// How long to wait for the others.
    pub wait: Duration,
    /// Whether ranks of one machine may add up their values in its memory.
    pub shares_memory: bool,
}

/// The first bytes of a connection.
const MAGIC: &[u8; 16] = b"twinlens ranks 1";
/// How long a peer may take for a step of the greeting.
const GREETING: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_millis(100);
/// The longest message of the greeting: the addresses of all ranks.
const MESSAGE_BYTES: usize = 4 << 20;

/// What a rank says of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Hello {
    rank: usize,
    size: usize,
    build: String,
    host: String,
    /// Where it listens for ranks after it.
    port: u16,
}

/// Where a rank listens.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Place {
    name: String,
    address: SocketAddr,
}

/// The answer of rank 0.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    /// All have come: their places by rank, the first of which is not needed.
    Come(Vec<Place>),
    Refused(Goodbye),
}

impl Meeting {
    /// Meets the other ranks.
    ///
    /// # Errors
    /// `Setup` if a rank is missing, of another build, or has another token.
    pub fn join(&self) -> Result<Tcp> {
        let deadline = Instant::now() + self.wait;
        let address = self.address()?;
        let peers = match self.launch.rank {
            0 => self.gather(address, deadline)?,
            _ => self.follow(address, deadline)?,
        };
        let name = rank_name(self.launch.rank, &host());
        let ranks = Tcp::new(self.launch.rank, name, peers);
        if self.shares_memory { ranks.share_memory() } else { Ok(ranks) }
    }

    /// Where rank 0 listens.
    fn address(&self) -> Result<SocketAddr> {
        let Launch { master, port, .. } = &self.launch;
        let master = match master {
            Some(master) => master.as_str(),
            None if self.launch.is_one_machine() => "127.0.0.1",
            None => {
                return Err(RankError::setup(
                    "MASTER_ADDR is not set, so that the ranks cannot find rank 0",
                    "set it to the host of rank 0 on all ranks (and MASTER_PORT, if 29500 is taken)",
                ));
            }
        };
        let unknown = |error: io::Error| {
            RankError::setup(
                format!("MASTER_ADDR is {master}, which has no address: {error}"),
                "set it to the host name or IP address of rank 0",
            )
        };
        let mut found = (master, *port).to_socket_addrs().map_err(unknown)?;
        let address = found.next().ok_or_else(|| unknown(ErrorKind::NotFound.into()))?;
        if self.token.is_none() && !address.ip().is_loopback() {
            return Err(RankError::setup(
                "ranks on several machines need a secret, since anyone in the network could be one",
                "set TWINLENS_TOKEN to the same random text on all ranks, and use a private network",
            ));
        }
        Ok(address)
    }

    fn hello(&self, port: u16) -> Hello {
        let Launch { rank, size, .. } = self.launch;
        Hello { rank, size, build: self.build.clone(), host: host(), port }
    }

    /// Rank 0: waits for all others.
    fn gather(&self, address: SocketAddr, deadline: Instant) -> Result<Vec<Option<Peer>>> {
        let size = self.launch.size;
        if size == 1 {
            return Ok(vec![None]);
        }
        let listener = TcpListener::bind(address).map_err(|error| {
            RankError::setup(
                format!("rank 0 cannot listen at {address}: {error}"),
                "MASTER_ADDR must be an address of this machine, and MASTER_PORT a free port",
            )
        })?;
        let mut come: Vec<Option<(TcpStream, Place)>> = (0..size).map(|_| None).collect();
        while come.iter().skip(1).any(Option::is_none) {
            let Some((mut stream, hello, peer)) = self.accept(&listener, deadline)? else {
                return Err(self.refuse(come, missing(self.launch.size, self.wait)));
            };
            let name = rank_name(hello.rank, &hello.host);
            if let Some(problem) = self.problem(&hello, &come) {
                let _ = send(&mut stream, &Answer::Refused(goodbye(0, &problem)));
                return Err(self.refuse(come, |_: &[usize]| problem));
            }
            let place = Place { name, address: SocketAddr::new(peer, hello.port) };
            come[hello.rank] = Some((stream, place));
        }
        let own = Place { name: rank_name(0, &host()), address };
        let places: Vec<Place> =
            come.iter().map(|one| one.as_ref().map_or(&own, |(_, place)| place).clone()).collect();
        let answer = Answer::Come(places);
        let welcome = |one: Option<(TcpStream, Place)>| {
            let Some((mut stream, place)) = one else { return Ok(None) };
            let welcomed = send(&mut stream, &answer).and_then(|()| Peer::new(place.name.clone(), stream));
            welcomed.map(Some).map_err(|error| lost(place.name, &error))
        };
        come.into_iter().map(welcome).collect()
    }

    /// Why a rank cannot be one of these.
    fn problem(&self, hello: &Hello, come: &[Option<(TcpStream, Place)>]) -> Option<RankError> {
        let name = rank_name(hello.rank, &hello.host);
        let (message, hint) = if hello.size != self.launch.size {
            let message =
                format!("{name} was started as one of {} ranks, rank 0 as one of {}", hello.size, come.len());
            (message, "start all ranks with one command, or use another MASTER_PORT for each training")
        } else if hello.build != self.build {
            let message = format!("{name} is another build: {}, and rank 0 is {}", hello.build, self.build);
            (message, "run the same program on all machines: another one may compute other numbers")
        } else if hello.rank == 0 || come[hello.rank].is_some() {
            let message = format!("{name} came, but there is already a rank {}", hello.rank);
            (message, "start each rank once; use another MASTER_PORT for each training")
        } else {
            return None;
        };
        Some(RankError::setup(message, hint))
    }

    /// Tells those who have come why it ends.
    fn refuse(
        &self,
        come: Vec<Option<(TcpStream, Place)>>,
        error: impl FnOnce(&[usize]) -> RankError,
    ) -> RankError {
        let absent: Vec<usize> = (1..come.len()).filter(|rank| come[*rank].is_none()).collect();
        let error = error(&absent);
        for (mut stream, _) in come.into_iter().flatten() {
            // Who cannot be told sees that the connection is closed.
            let _ = send(&mut stream, &Answer::Refused(goodbye(0, &error)));
        }
        error
    }

    /// The next rank that knows the token. `None` after the deadline.
    fn accept(
        &self,
        listener: &TcpListener,
        deadline: Instant,
    ) -> Result<Option<(TcpStream, Hello, IpAddr)>> {
        let fail = |error: io::Error| RankError::setup(format!("cannot wait for other ranks: {error}"), "");
        listener.set_nonblocking(true).map_err(fail)?;
        while Instant::now() < deadline {
            match listener.accept() {
                Ok((stream, peer)) => {
                    // Anything else that connects, such as a port scanner, is dropped.
                    if let Ok((stream, hello)) = self.admit(stream)
                        && hello.rank < hello.size
                    {
                        return Ok(Some((stream, hello, peer.ip())));
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(error) => return Err(fail(error)),
            }
        }
        Ok(None)
    }

    /// The side that accepts a connection: proves itself and reads who it is.
    fn admit(&self, mut stream: TcpStream) -> io::Result<(TcpStream, Hello)> {
        stream.set_nonblocking(false)?;
        self.authenticate(&mut stream, false)?;
        let hello = receive(&mut stream)?;
        Ok((stream, hello))
    }

    /// Both sides send a random number; each answers with a hash of the token and both numbers.
    fn authenticate(&self, stream: &mut TcpStream, connects: bool) -> io::Result<()> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(GREETING))?;
        stream.set_write_timeout(Some(GREETING))?;
        let (own, mut greeting): ([u8; 16], [u8; 32]) = (rand::random(), [0; 32]);
        stream.write_all(&[&MAGIC[..], &own].concat())?;
        stream.read_exact(&mut greeting)?;
        let (magic, other) = greeting.split_at(16);
        if magic != MAGIC {
            return Err(io::Error::new(ErrorKind::InvalidData, "it is not a rank of a training"));
        }
        let (first, second) = if connects { (&own[..], other) } else { (other, &own[..]) };
        let proof = |connects: bool| {
            let token = self.token.as_deref().unwrap_or_default();
            let token = Sha256::digest(token.as_bytes());
            Sha256::digest([&token[..], first, second, &[u8::from(connects)]].concat())
        };
        stream.write_all(&proof(connects))?;
        let mut theirs = [0; 32];
        stream.read_exact(&mut theirs)?;
        if theirs[..] != proof(!connects)[..] {
            return Err(ErrorKind::PermissionDenied.into());
        }
        Ok(())
    }

    /// Other ranks: connect to rank 0, and then to each other.
    fn follow(&self, address: SocketAddr, deadline: Instant) -> Result<Vec<Option<Peer>>> {
        let Launch { rank, size, .. } = self.launch;
        let refused = "it is not rank 0, or TWINLENS_TOKEN is another one";
        let mut stream = self.connect(address, deadline).map_err(|error| match error.kind() {
            ErrorKind::PermissionDenied | ErrorKind::InvalidData | ErrorKind::UnexpectedEof => {
                RankError::setup(format!("{address} refused rank {rank}: {refused}"), SAME_TOKEN)
            }
            _ => RankError::setup(
                format!("rank 0 does not answer at {address} within {} s ({error})", seconds(self.wait)),
                "start all ranks with one command, and see what rank 0 says",
            ),
        })?;
        let fail = |error: io::Error| lost("rank 0".into(), &error);
        let listener = TcpListener::bind((stream.local_addr().map_err(fail)?.ip(), 0)).map_err(fail)?;
        let port = listener.local_addr().map_err(fail)?.port();
        send(&mut stream, &self.hello(port)).map_err(fail)?;
        // Rank 0 answers when all have come.
        stream
            .set_read_timeout(Some(deadline.saturating_duration_since(Instant::now()) + GREETING))
            .map_err(fail)?;
        let places = match receive(&mut stream).map_err(fail)? {
            Answer::Come(places) if places.len() == size => places,
            Answer::Come(_) => return Err(RankError::OutOfStep("another number of ranks".into())),
            Answer::Refused(goodbye) => return Err(goodbye.into()),
        };
        let deadline = Instant::now() + self.wait;
        let mut peers: Vec<Option<Peer>> = (0..size).map(|_| None).collect();
        let peer = |other: usize, stream| {
            let name = places[other].name.clone();
            Peer::new(name.clone(), stream).map_err(|error| lost(name, &error))
        };
        peers[0] = Some(peer(0, stream)?);
        for other in 1..rank {
            let name = places[other].name.clone();
            let mut stream =
                self.connect(places[other].address, deadline).map_err(|error| lost(name.clone(), &error))?;
            send(&mut stream, &self.hello(0)).map_err(|error| lost(name, &error))?;
            peers[other] = Some(peer(other, stream)?);
        }
        while let Some(absent) = (rank + 1..size).find(|other| peers[*other].is_none()) {
            let came = self.accept(&listener, deadline)?;
            let Some((stream, hello, _)) = came.filter(|(_, hello, _)| hello.rank < size) else {
                let why = format!("it did not connect within {} s", seconds(self.wait));
                return Err(RankError::Lost { who: places[absent].name.clone(), why });
            };
            peers[hello.rank] = Some(peer(hello.rank, stream)?);
        }
        Ok(peers)
    }

    /// Connects as soon as the other side listens.
    fn connect(&self, address: SocketAddr, deadline: Instant) -> io::Result<TcpStream> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let connected = TcpStream::connect_timeout(&address, left.max(RETRY)).and_then(|mut stream| {
                self.authenticate(&mut stream, true)?;
                Ok(stream)
            });
            match connected {
                Err(error) if left > RETRY && error.kind() != ErrorKind::PermissionDenied => {
                    std::thread::sleep(RETRY);
                }
                other => return other,
            }
        }
    }
}

const SAME_TOKEN: &str = "set TWINLENS_TOKEN to the same text on all ranks";

/// The error that ranks did not come.
fn missing(size: usize, wait: Duration) -> impl FnOnce(&[usize]) -> RankError {
    move |absent| {
        let names: Vec<String> = absent.iter().map(usize::to_string).collect();
        let ranks = if absent.len() == 1 { "rank" } else { "ranks" };
        RankError::setup(
            format!("{ranks} {} of {size} did not come within {} s", names.join(", "), seconds(wait)),
            "see what they say on their machines: do they reach MASTER_ADDR, and have the same TWINLENS_TOKEN?",
        )
    }
}

fn seconds(duration: Duration) -> f64 {
    duration.as_millis() as f64 / 1000.0
}

fn goodbye(rank: usize, error: &RankError) -> Goodbye {
    Goodbye { who: rank_name(rank, &host()), code: Some(1), message: error.to_string() }
}

fn lost(who: String, error: &io::Error) -> RankError {
    RankError::Lost { who, why: error.to_string() }
}

fn rank_name(rank: usize, host: &str) -> String {
    format!("rank {rank} ({host})")
}

/// The name of this machine.
fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = name.or_else(|| std::env::var("HOSTNAME").ok()).unwrap_or_default();
    if name.trim().is_empty() { "this machine".into() } else { name.trim().into() }
}

fn send(stream: &mut TcpStream, message: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    stream.write_all(&(text.len() as u32).to_le_bytes())?;
    stream.write_all(&text)
}

fn receive<T: DeserializeOwned>(stream: &mut TcpStream) -> io::Result<T> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MESSAGE_BYTES {
        return Err(io::Error::new(ErrorKind::InvalidData, "it sent a message that is too long"));
    }
    let mut text = vec![0; length];
    stream.read_exact(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}
