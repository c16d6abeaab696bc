//! Compiles the few calls of libtorch that no crate wraps (`src/nn/jit.cpp`), and lets the `hilum` binary find
//! libtorch at run time without `LD_LIBRARY_PATH`.
//!
//! `torch-sys` tells its direct dependents where it linked libtorch from; we compile against the headers beside that
//! folder and put it into the binary's run path. Builds whose libtorch moves later can still use `LD_LIBRARY_PATH`.

use std::path::Path;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=migrations");
    println!("cargo:rerun-if-changed=src/nn/jit.cpp");
    println!("cargo:rerun-if-changed=src/nn/winograd.cpp");
    println!("cargo:rerun-if-env-changed=DEP_TCH_LIBTORCH_LIB");
    let Ok(libtorch_folder) = std::env::var("DEP_TCH_LIBTORCH_LIB") else {
        println!("cargo:warning=torch-sys does not say where libtorch is; set LIBTORCH as the Makefile does");
        return;
    };
    let headers = Path::new(&libtorch_folder).with_file_name("include");
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .pic(true)
        .warnings(false)
        .debug(false)
        .include(&headers)
        .include(headers.join("torch/csrc/api/include"))
        .define("_GLIBCXX_USE_CXX11_ABI", "1");
    build.clone().opt_level(1).file("src/nn/jit.cpp").compile("hilum_jit");
    // libtorch's `parallel_for` is a template that calls OpenMP: the process must have libtorch's and no second one.
    build.opt_level(3).flag("-fopenmp").flag("-Wno-psabi").file("src/nn/winograd.cpp").compile("hilum_winograd");
    println!("cargo:rustc-link-arg={libtorch_folder}/libgomp.so.1");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{libtorch_folder}");
}
