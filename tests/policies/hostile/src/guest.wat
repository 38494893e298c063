;; A lease policy by hand. It offers every node. Marked lines are replaced by tests.
(module
  (import "[export]kubeocean:policy/lease@1.0.0" "[resource-new]lease-evaluator"
    (func $resource_new (param i32) (result i32)))
  (import "kubeocean:policy/host@1.0.0" "log" (func $log (param i32 i32 i32)))
  ;;IMPORTS
  (memory (export "memory") 8) ;;MEMORY
  (table 1 funcref)
  (global $top (mut i32) (i32.const 65536))
  (global $calls (mut i64) (i64.const 0))

  ;; describe -> {name, version, description, settings-schema}
  (data (i32.const 16) "\00\04\00\00\07\00\00\00\08\04\00\00\05\00\00\00\10\04\00\00\01\00\00\00\18\04\00\00\02\00\00\00")
  (data (i32.const 1024) "hostile\00" "0.1.0\00\00\00" "x\00\00\00\00\00\00\00" "{}")
  ;; needs -> {texts: [], numbers: ["node.created"], pod-texts: [], pod-numbers: [], caps: ["cpu"]}
  (data (i32.const 64) "\00\00\00\00\00\00\00\00\80\00\00\00\01\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\88\00\00\00\01\00\00\00")
  (data (i32.const 128) "\40\04\00\00\0c\00\00\00" "\50\04\00\00\03\00\00\00")
  (data (i32.const 1088) "node.created")
  (data (i32.const 1104) "cpu")
  ;; a reason: {code: "Hostile", message: "on purpose"} at 160
  (data (i32.const 160) "\60\04\00\00\07\00\00\00\70\04\00\00\0a\00\00\00")
  (data (i32.const 1120) "Hostile\00\00\00\00\00\00\00\00\00" "on purpose")
  (data (i32.const 1152) "a line\nof two")

  (func $alloc (param $size i32) (result i32)
    (local $at i32)
    (local.set $at (global.get $top))
    (global.set $top (i32.and (i32.add (i32.add (global.get $top) (local.get $size)) (i32.const 15)) (i32.const -16)))
    (local.get $at))
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (call $alloc (local.get 3)))

  (func (export "kubeocean:policy/meta@1.0.0#describe") (result i32)
    ;;DESCRIBE
    (i32.const 16))

  (func (export "kubeocean:policy/lease@1.0.0#[static]lease-evaluator.create") (param $settings i32) (param $length i32) (result i32)
    ;;CREATE
    (i32.store8 (i32.const 256) (i32.const 0))
    (i32.store (i32.const 260) (call $resource_new (i32.const 1)))
    (i32.const 256))

  (func (export "kubeocean:policy/lease@1.0.0#[method]lease-evaluator.needs") (param i32) (result i32)
    ;;NEEDS
    (i32.const 64))

  ;; Arguments in memory: self 0, now 8 (unix-seconds 8), rows 64, strings 68, texts 76, numbers 84.
  (func $rows (param $args i32) (result i32) (i32.load offset=64 (local.get $args)))
  (func $number (param $args i32) (param $row i32) (result i64)
    (i64.load (i32.add (i32.load offset=84 (local.get $args)) (i32.mul (local.get $row) (i32.const 8)))))
  (func $poisoned (param $args i32) (result i32)
    (local $row i32)
    (block $no
      (loop $next
        (br_if $no (i32.ge_u (local.get $row) (call $rows (local.get $args))))
        (if (i64.eq (call $number (local.get $args) (local.get $row)) (i64.const 666)) (then (return (i32.const 1))))
        (local.set $row (i32.add (local.get $row) (i32.const 1)))
        (br $next)))
    (i32.const 0))

  ;; Result at 272: ok 0, rows 276, caps 284, reasons 292. A row of zeros is an offer; 40 bytes:
  ;; verdict 0, reclaim 4 + seconds 8, valid-until 16 + value 24, reason 32 + index 36.
  (func (export "kubeocean:policy/lease@1.0.0#[method]lease-evaluator.lease") (param $args i32) (result i32)
    (local $i i32)
    (global.set $calls (i64.add (global.get $calls) (i64.const 1)))
    (i32.store8 (i32.const 272) (i32.const 0))
    (i32.store (i32.const 276) (call $alloc (i32.mul (call $rows (local.get $args)) (i32.const 40))))
    (i32.store (i32.const 280) (call $rows (local.get $args)))
    (i32.store (i32.const 292) (i32.const 160))
    (i32.store (i32.const 296) (i32.const 1))
    ;;LEASE
    (if (call $poisoned (local.get $args)) (then
      ;;POISONED
    ))
    (i32.const 272))

  ;; Gives every row the cap in $value.
  (func $cap_all (param $args i32) (param $value i64)
    (local $row i32) (local $at i32)
    (local.set $at (call $alloc (i32.mul (call $rows (local.get $args)) (i32.const 8))))
    (i32.store (i32.const 284) (local.get $at))
    (i32.store (i32.const 288) (call $rows (local.get $args)))
    (block $done
      (loop $next
        (br_if $done (i32.ge_u (local.get $row) (call $rows (local.get $args))))
        (i64.store (i32.add (local.get $at) (i32.mul (local.get $row) (i32.const 8))) (local.get $value))
        (local.set $row (i32.add (local.get $row) (i32.const 1)))
        (br $next))))

  (func $forever (loop $again (br $again)))
  (func $deep (param i32) (result i32) (i32.add (call $deep (i32.add (local.get 0) (i32.const 1))) (i32.const 1)))
  (func $flood (local $n i32)
    (loop $again
      (call $log (i32.const 3) (i32.const 1152) (i32.const 13))
      (local.set $n (i32.add (local.get $n) (i32.const 1)))
      (br_if $again (i32.lt_u (local.get $n) (i32.const 100)))))
  (func $grow_forever (loop $again (drop (memory.grow (i32.const 64))) (br $again)))
  ;;START
)
