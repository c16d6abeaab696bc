//! Lets the `hilum` binary find libtorch at run time without `LD_LIBRARY_PATH`.
//!
//! `torch-sys` tells its direct dependents where it linked libtorch from; we put that folder into the
//! binary's run path. Builds whose libtorch moves later can still use `LD_LIBRARY_PATH`.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=migrations");
    println!("cargo:rerun-if-env-changed=DEP_TCH_LIBTORCH_LIB");
    if let Ok(libtorch_folder) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{libtorch_folder}");
    }
}
