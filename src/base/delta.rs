//! Compression with zstd, alone or against other bytes (the base): for frames of packs, and trees at
//! rest.

use zstd::zstd_safe::{CCtx, CParameter, DCtx, DParameter, compress_bound, get_error_name};

use crate::error::{Error, Result};

/// Compresses `content` against `base`, which may be empty, and tests that unpacking gives it back.
///
/// # Errors
///
/// `Io` with zstd's error.
pub fn pack(content: &[u8], base: &[u8], level: i32) -> Result<Vec<u8>> {
    let failed = |code| compression(get_error_name(code));
    let window = usize::BITS - (content.len() + base.len()).leading_zeros();
    let mut context = CCtx::create();
    context.set_parameter(CParameter::CompressionLevel(level)).map_err(failed)?;
    context.set_parameter(CParameter::WindowLog(window.clamp(10, 31))).map_err(failed)?;
    if !base.is_empty() {
        context.ref_prefix(base).map_err(failed)?;
    }
    let mut packed = Vec::with_capacity(compress_bound(content.len()));
    context.compress2(&mut packed, content).map_err(failed)?;
    drop(context);
    let back = unpack(&packed, base, content.len(), Vec::new()).map_err(|why| compression(&why))?;
    if back == content { Ok(packed) } else { Err(compression("it does not unpack to what went in")) }
}

/// Unpacks bytes that were compressed against `base`, and that have `size` bytes unpacked. `out` is a
/// buffer that is reused.
///
/// # Errors
///
/// A sentence: zstd's error, or the size that came out instead.
pub fn unpack(
    packed: &[u8],
    base: &[u8],
    size: usize,
    mut out: Vec<u8>,
) -> std::result::Result<Vec<u8>, String> {
    let failed = |code| get_error_name(code).to_owned();
    let mut context = DCtx::create();
    context.set_parameter(DParameter::WindowLogMax(31)).map_err(failed)?;
    if !base.is_empty() {
        context.ref_prefix(base).map_err(failed)?;
    }
    out.clear();
    out.try_reserve_exact(size).map_err(|e| e.to_string())?;
    context.decompress(&mut out, packed).map_err(failed)?;
    if out.len() == size { Ok(out) } else { Err(format!("{} bytes instead of {size}", out.len())) }
}

fn compression(why: &str) -> Error {
    Error::Io { doing: "compress", path: "content".into(), source: std::io::Error::other(why.to_owned()) }
}
