//! The connection to the kernel: handshake, and the threads that serve.

use std::{io, os::fd::OwnedFd, sync::Arc, thread, time::Duration};

use fuser::{InitFlags, consts::FUSE_MIN_READ_BUFFER};

use super::{
    WRITE_MAX,
    abi::{self, opcode},
    adapter::Adapter,
    awake::Awake,
    buffers::Buffers,
    crew::Crew,
    device::{Device, Reply},
    dying,
    gate::Gate,
    inside::{Inside, Tell},
    interrupts::{Interrupts, Waits},
    processors,
    serve::{self, Queue, SLOW_KINDS},
    splice::Scratch,
    wire::{self, Fields, Out},
};
use crate::{
    meters::Meters,
    vfs::{CacheMode, Journal, Vfs},
};

/// Threads that serve, least and most; between them, as many as there are processors. Calls may block on the local disk (a cold mark, an
/// fsync), so at least some.
const THREADS: [usize; 2] = [4, 16];

/// How long the next request is polled for while they come quickly and processors are to spare, if the options do not say.
const BUSY_POLL: Duration = Duration::from_micros(40);

/// How long to poll if the options do not say. On a single processor, who polls keeps it from who would ask.
pub fn default_busy_poll() -> Duration {
    if processors::count() > 1 { BUSY_POLL } else { Duration::ZERO }
}

/// What a request may be long: the largest write, and a page for what stands before it.
const BUFFER_BYTES: usize = WRITE_MAX as usize + 4096;

/// Requests that the kernel has under way without anybody waiting for each (read-ahead, write-back).
const BACKGROUND_MAX: u16 = 64;

/// The kernel refuses to hand a request to anything shorter.
const _: () = assert!(BUFFER_BYTES >= FUSE_MIN_READ_BUFFER);

/// Without these, permissions of what is made would be wrong.
const NEEDS: InitFlags = InitFlags::FUSE_DONT_MASK.union(InitFlags::FUSE_POSIX_ACL);

/// How many file systems may lie on each other, ours included, where the kernel reads backing files itself (`max_stack_depth`): what is no overlay can be
/// read so, and an overlay may be made over the mount.
const BACKING_DEPTH: u32 = 1;

/// What the kernel is asked for beyond that, as far as it has it.
const WISHES: [InitFlags; 13] = [
    InitFlags::FUSE_ASYNC_READ,
    InitFlags::FUSE_BIG_WRITES,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_MAX_PAGES,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_NO_OPENDIR_SUPPORT,
    InitFlags::FUSE_EXPLICIT_INVAL_DATA,
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    InitFlags::FUSE_INIT_EXT,
    InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
];

/// What kind of call waits, and for whom. May be asked at any time.
pub type Waiting = Box<dyn Fn() -> Vec<(&'static str, Waits)> + Send + Sync>;

/// A connection to the kernel whose handshake is done.
pub struct Connection<J: Journal> {
    device: Arc<Device>,
    adapter: Arc<Adapter<J>>,
    busy_poll: Duration,
}

impl<J: Journal> Connection<J> {
    /// Takes over a FUSE descriptor whose superblock exists, and shakes hands.
    pub fn open(fuse: OwnedFd, vfs: Arc<Vfs<J>>) -> io::Result<Connection<J>> {
        let device = Arc::new(Device::new(fuse));
        let needs = needs(vfs.cache_mode(), vfs.passes_reads());
        shake_hands(&device, needs)?;
        vfs.pass_through(Box::new(device.clone()));
        let invalidating = device.clone();
        vfs.when_attributes_change(Box::new(move |node| {
            if let Err(error) = invalidating.forget_attributes(node) {
                tracing::debug!(%error, node, "the kernel keeps old attributes");
            }
        }));
        let gate = Gate::default();
        vfs.when_asked_for_held(gate.count());
        let interrupts = Arc::new(Interrupts::default());
        let adapter = Adapter { vfs, interrupts, gate, meters: Arc::default(), inside: Inside::default() };
        Ok(Connection { device, adapter: Arc::new(adapter), busy_poll: default_busy_poll() })
    }

    /// What was asked, and how long it took.
    pub fn meters(&self) -> Arc<Meters> {
        self.adapter.meters.clone()
    }

    /// Tells which calls wait for the replica, and which writes are held back.
    pub fn waiting(&self) -> Waiting {
        let adapter = Arc::downgrade(&self.adapter);
        Box::new(move || {
            let Some(adapter) = adapter.upgrade() else { return Vec::new() };
            let told = |what| move |waits: Waits| (what, waits);
            let fsyncs = adapter.interrupts.waiting().into_iter().map(told("fsync"));
            fsyncs.chain(adapter.gate.waiting().into_iter().map(told("write"))).collect()
        })
    }

    /// What the files of `.tandem` say. Only the first is kept.
    pub fn show_inside(&self, tell: Tell) {
        self.adapter.inside.show(tell);
    }

    /// The same that polls so long for the next request while they come quickly; zero: never.
    #[must_use]
    pub fn with_busy_poll(mut self, busy_poll: Duration) -> Connection<J> {
        self.busy_poll = busy_poll;
        self
    }

    /// Answers requests until the file system is unmounted.
    pub fn serve(self) -> io::Result<()> {
        let Connection { device, adapter, busy_poll } = self;
        let count = processors::count().clamp(THREADS[0], THREADS[1]);
        let awake = if busy_poll.is_zero() { Awake::default() } else { Awake::new() };
        let (crew, buffers) = (Arc::new(Crew::new(count, &SLOW_KINDS, awake)), Buffers::new(BUFFER_BYTES));
        let mut devices = vec![device];
        while devices.len() < count {
            // Where it cannot be had, threads share one queue.
            let another = devices[0].another().map(Arc::new);
            devices.push(another.unwrap_or_else(|_| devices[0].clone()));
        }
        let mut threads = Vec::new();
        for (number, device) in devices.into_iter().enumerate() {
            let (adapter, crew, buffers) = (adapter.clone(), crew.clone(), buffers.clone());
            let queue = Queue::new(device, busy_poll);
            let serve = move || serve::serve(number, &queue, &crew, &buffers, &adapter);
            threads.push(thread::Builder::new().name(format!("fuse-{number}")).spawn(serve)?);
        }
        let releasing = adapter.clone();
        let releaser = thread::Builder::new().name("fuse-gate".into()).spawn(move || release(&releasing))?;
        let watching = adapter.clone();
        let watcher = thread::Builder::new().name("fuse-signals".into()).spawn(move || watch(&watching))?;
        let mut served = Ok(());
        for thread in threads {
            let ended = thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread that serves panicked")));
            served = served.and(ended);
        }
        adapter.gate.stop();
        if releaser.join().is_err() {
            tracing::error!("the thread that carries out held writes panicked");
        }
        adapter.interrupts.stop();
        if watcher.join().is_err() {
            tracing::error!("the thread that watches for signals panicked");
        }
        served
    }
}

/// Carries out writes that were held back, as soon as they may go on.
fn release<J: Journal>(adapter: &Adapter<J>) {
    let mut scratch = Scratch::default();
    while let Some(held) = adapter.gate.next(|| adapter.vfs.journal().congested()) {
        if let Ok((header, fields)) = wire::request(&held.bytes) {
            adapter.call(header, fields, None, &held.device, &mut scratch);
        }
    }
}

/// Ends waits of threads that are dying.
fn watch<J: Journal>(adapter: &Adapter<J>) {
    while let Some(signalled) = adapter.interrupts.next_signalled() {
        for (thread, ticket) in signalled {
            if dying::is_dying(thread) {
                adapter.vfs.interrupt(ticket);
            }
        }
        adapter.interrupts.rest();
    }
}

/// What the kernel must have for this mount.
fn needs(cache_mode: CacheMode, passes_reads: bool) -> InitFlags {
    let mut needs = NEEDS;
    needs.set(InitFlags::FUSE_WRITEBACK_CACHE, cache_mode == CacheMode::Writeback);
    needs.set(InitFlags::FUSE_PASSTHROUGH, passes_reads);
    needs
}

/// INIT: versions, capabilities, limits.
fn shake_hands(device: &Arc<Device>, needs: InitFlags) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let Some(len) = device.take(&mut buffer)? else {
            return Err(io::Error::new(io::ErrorKind::NotConnected, "the mount went before it was served"));
        };
        let (header, mut fields) = wire::request(&buffer[..len]).map_err(io::Error::other)?;
        let reply = Reply::new(header.unique, device);
        if header.opcode != opcode::INIT {
            return Err(io::Error::other(format!("the kernel begins with request {}", header.opcode)));
        }
        let (major, minor) = (fields.u32().map_err(io::Error::other)?, fields.u32().map_err(io::Error::other)?);
        if major > abi::MAJOR {
            // It asks again with ours.
            reply.out(Out::default().u32(abi::MAJOR).u32(abi::MINOR).zeroes(56));
            continue;
        }
        if major < abi::MAJOR || minor < abi::MINOR_MIN {
            reply.error(libc::EPROTO);
            return Err(io::Error::other(format!("this kernel speaks FUSE {major}.{minor}, which is too old")));
        }
        return answer_init(reply, fields, needs).map_err(io::Error::other);
    }
}

fn answer_init(reply: Reply, mut fields: Fields<'_>, needs: InitFlags) -> Result<(), String> {
    let (read_ahead, low) = match (fields.u32(), fields.u32()) {
        (Ok(read_ahead), Ok(low)) => (read_ahead, u64::from(low)),
        _ => return Err("the kernel's INIT is too short".to_owned()),
    };
    let extended = low & InitFlags::FUSE_INIT_EXT.bits() != 0;
    let high = if extended { fields.u32().unwrap_or_default() } else { 0 };
    let offered = InitFlags::from_bits_retain(low | u64::from(high) << 32);
    if !offered.contains(needs) {
        reply.error(libc::EPROTO);
        return Err(format!("this kernel's FUSE lacks {:?}", needs - offered));
    }
    let wishes = WISHES.into_iter().fold(needs, InitFlags::union);
    let taken = offered & wishes;
    tracing::debug!(?taken, lacking = ?(wishes - offered), "FUSE capabilities");
    let taken = taken.bits();
    let out = Out::default().u32(abi::MAJOR).u32(abi::MINOR).u32(read_ahead).u32(taken as u32);
    let out = out.u16(BACKGROUND_MAX).u16(BACKGROUND_MAX / 4 * 3).u32(WRITE_MAX);
    let depth = if needs.contains(InitFlags::FUSE_PASSTHROUGH) { BACKING_DEPTH } else { 0 };
    // Times count in nanoseconds; pages of a request; no alignment; the rest is for what is not taken.
    reply.out(out.u32(1).u16((WRITE_MAX / 4096) as u16).u16(0).u32((taken >> 32) as u32).u32(depth).zeroes(24));
    Ok(())
}
