//! The first process of a process namespace that a pod's containers share. It does nothing: its being there keeps the
//! namespace, and the kernel takes processes that have lost their parents off its hands.
//!
//! `build.rs` compiles it, and the agent carries it. It is static, so that it needs no file beside its own.

#![no_std]
#![no_main]

use core::arch::asm;
use core::panic::PanicInfo;

const SIGCHLD: usize = 17;
const SIG_IGN: usize = 1;
/// Bytes of the kernel's set of signals.
const SIGNALS: usize = 8;

#[cfg(target_arch = "x86_64")]
mod number {
    pub const RT_SIGACTION: usize = 13;
    pub const PPOLL: usize = 271;
}
#[cfg(target_arch = "aarch64")]
mod number {
    pub const RT_SIGACTION: usize = 134;
    pub const PPOLL: usize = 73;
}

/// The kernel's `struct sigaction`; where a field is missing on an architecture, zeros follow.
#[repr(C)]
struct Action {
    handler: usize,
    rest: [usize; 3],
}

#[unsafe(no_mangle)]
extern "C" fn _start() -> ! {
    let ignore = Action {
        handler: SIG_IGN,
        rest: [0; 3],
    };
    // Children of a process that ignores this signal leave no zombies.
    // SAFETY: the kernel reads one `Action`, which lives until the call is over, and writes nothing.
    unsafe {
        call(
            number::RT_SIGACTION,
            [SIGCHLD, &raw const ignore as usize, 0, SIGNALS, 0],
        )
    };
    loop {
        // Waits for ever, for nothing.
        // SAFETY: no pointer is passed.
        unsafe { call(number::PPOLL, [0; 5]) };
    }
}

/// A system call whose answer does not matter.
///
/// # Safety
///
/// As the call's own.
#[cfg(target_arch = "x86_64")]
unsafe fn call(number: usize, arguments: [usize; 5]) {
    let [a, b, c, d, e] = arguments;
    // SAFETY: as the caller says; the kernel changes no other registers.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => _,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
}

/// A system call whose answer does not matter.
///
/// # Safety
///
/// As the call's own.
#[cfg(target_arch = "aarch64")]
unsafe fn call(number: usize, arguments: [usize; 5]) {
    let [a, b, c, d, e] = arguments;
    // SAFETY: as the caller says; the kernel changes no other registers.
    unsafe {
        asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") a => _,
            in("x1") b, in("x2") c, in("x3") d, in("x4") e,
            options(nostack),
        );
    }
}

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    loop {}
}
