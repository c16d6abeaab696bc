#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hilum::fuzzing::command_set(bytes));
