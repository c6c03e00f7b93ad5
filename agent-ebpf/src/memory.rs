//! Memory by the word. What is written as arrays of bytes, or as zeros, the compiler would have a loop or a load for each
//! byte of.

use core::arch::asm;
use core::mem::MaybeUninit;

/// A value all of whose bytes are zero.
///
/// # Safety
///
/// Zeros have to be a value of `T`.
#[inline(always)]
pub(crate) unsafe fn zeroed<T>() -> T {
    const { assert!(size_of::<T>().is_multiple_of(4) && align_of::<T>() >= 4) };
    let zero: u32;
    // The compiler makes a loop of what it knows for zeros.
    // SAFETY: it sets a register.
    unsafe { asm!("{0} = 0", out(reg) zero, options(pure, nomem, nostack)) };
    let mut value = MaybeUninit::<T>::uninit();
    let words = value.as_mut_ptr().cast::<u32>();
    let mut n = 0;
    while n < size_of::<T>() / 4 {
        // SAFETY: within the value.
        unsafe { words.add(n).write(zero) };
        n += 1;
    }
    // SAFETY: all of it was written, and the caller says that it is a value.
    unsafe { value.assume_init() }
}

/// Reads bytes of a packet.
///
/// # Safety
///
/// They have to be there. Words are read wherever they lie, which the processors for which the kernel lets programs do so can.
#[inline(always)]
pub(crate) unsafe fn load<const N: usize>(from: *const u8) -> [u8; N] {
    let mut bytes = [0; N];
    let mut n = 0;
    // SAFETY: within the packet, as the caller says.
    unsafe {
        while n + 4 <= N {
            let word = from.add(n).cast::<u32>().read().to_ne_bytes();
            (bytes[n], bytes[n + 1], bytes[n + 2], bytes[n + 3]) =
                (word[0], word[1], word[2], word[3]);
            n += 4;
        }
        if n + 2 <= N {
            let half = from.add(n).cast::<u16>().read().to_ne_bytes();
            (bytes[n], bytes[n + 1]) = (half[0], half[1]);
            n += 2;
        }
        if n < N {
            bytes[n] = from.add(n).read();
        }
    }
    bytes
}

/// Writes bytes of a packet.
///
/// # Safety
///
/// As for [`load`].
#[inline(always)]
pub(crate) unsafe fn store<const N: usize>(to: *mut u8, bytes: &[u8; N]) {
    let mut n = 0;
    // SAFETY: within the packet, as the caller says.
    unsafe {
        while n + 4 <= N {
            let word = [bytes[n], bytes[n + 1], bytes[n + 2], bytes[n + 3]];
            to.add(n).cast::<u32>().write(u32::from_ne_bytes(word));
            n += 4;
        }
        if n + 2 <= N {
            let half = [bytes[n], bytes[n + 1]];
            to.add(n).cast::<u16>().write(u16::from_ne_bytes(half));
            n += 2;
        }
        if n < N {
            to.add(n).write(bytes[n]);
        }
    }
}
