;; A place policy by hand. Each candidate says itself what the answer about it is: by the extended resources
;; ?.test/fit (0 accept, 1 reject, n later in n seconds, 666 the marked code) and ?.test/score (0 none, n score n - 1).
;; Marked lines are replaced by tests, and ? by the letter of the guest.
(module
  (import "[export]kubeocean:policy/place@1.0.0" "[resource-new]place-evaluator"
    (func $resource_new (param i32) (result i32)))
  ;;LEASE_IMPORTS
  (import "kubeocean:policy/host@1.0.0" "log" (func $log (param i32 i32 i32)))
  (memory (export "memory") 16)
  (global $top (mut i32) (i32.const 65536))

  ;; describe -> {name, version, description, settings-schema}
  (data (i32.const 16) "\00\04\00\00\05\00\00\00\08\04\00\00\05\00\00\00\10\04\00\00\01\00\00\00\18\04\00\00\02\00\00\00")
  (data (i32.const 1024) "place\00\00\00" "0.1.0\00\00\00" "x\00\00\00\00\00\00\00" "{}")
  ;; needs -> {texts: [node.name, label/pool, label/zone], numbers: [fit, score, available/cpu], pod-texts: [],
  ;; pod-numbers: [pod.priority], caps: []}: it reads as much as a policy of some use.
  (data (i32.const 64) "\c0\00\00\00\03\00\00\00\80\00\00\00\03\00\00\00\00\00\00\00\00\00\00\00\98\00\00\00\01\00\00\00\00\00\00\00\00\00\00\00")
  (data (i32.const 128) "\40\04\00\00\16\00\00\00" "\60\04\00\00\18\00\00\00" "\d0\04\00\00\0d\00\00\00" "\80\04\00\00\0c\00\00\00")
  (data (i32.const 192) "\e0\04\00\00\09\00\00\00" "\f0\04\00\00\0a\00\00\00" "\00\05\00\00\0a\00\00\00")
  (data (i32.const 1232) "available/cpu\00\00\00" "node.name\00\00\00\00\00\00\00" "label/pool\00\00\00\00\00\00" "label/zone")
  (data (i32.const 1088) "allocatable/?.test/fit")
  (data (i32.const 1120) "allocatable/?.test/score")
  (data (i32.const 1152) "pod.priority")
  ;; a reason: {code: "Hostile", message: "on purpose"} at 224
  (data (i32.const 224) "\a0\04\00\00\07\00\00\00\b0\04\00\00\0a\00\00\00")
  (data (i32.const 1184) "Hostile\00\00\00\00\00\00\00\00\00" "on purpose")

  (func $alloc (param $size i32) (result i32)
    (local $at i32)
    (local.set $at (global.get $top))
    (global.set $top (i32.and (i32.add (i32.add (global.get $top) (local.get $size)) (i32.const 15)) (i32.const -16)))
    (local.get $at))
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (call $alloc (local.get 3)))

  (func (export "kubeocean:policy/meta@1.0.0#describe") (result i32) (i32.const 16))

  (func (export "kubeocean:policy/place@1.0.0#[static]place-evaluator.create") (param $settings i32) (param $length i32) (result i32)
    (i32.store8 (i32.const 256) (i32.const 0))
    (i32.store (i32.const 260) (call $resource_new (i32.const 1)))
    (i32.const 256))

  (func (export "kubeocean:policy/place@1.0.0#[method]place-evaluator.needs") (param i32) (result i32)
    (i32.const 64))

  ;; Arguments in memory: self 0, stage 4, now 8, pod 64 (numbers 84), nodes 92 (rows 92, numbers 112).
  (func $rows (param $args i32) (result i32) (i32.load offset=92 (local.get $args)))
  (func $number (param $args i32) (param $row i32) (param $column i32) (result i64)
    (i64.load (i32.add (i32.load offset=112 (local.get $args))
      (i32.mul (i32.add (i32.mul (local.get $row) (i32.const 3)) (local.get $column)) (i32.const 8)))))
  (func $stage (param $args i32) (result i32) (i32.load8_u offset=4 (local.get $args)))
  (func $priority (param $args i32) (result i64) (i64.load (i32.load offset=84 (local.get $args))))

  ;; Result at 272: ok 0, rows 276, reasons 284. A row of zeros accepts; 20 bytes:
  ;; fit 0 + seconds 4, score 8 + value 9, reason 12 + index 16.
  (func (export "kubeocean:policy/place@1.0.0#[method]place-evaluator.place") (param $args i32) (result i32)
    (local $row i32) (local $at i32) (local $fit i64) (local $score i64)
    (i32.store8 (i32.const 272) (i32.const 0))
    (local.set $at (call $alloc (i32.mul (call $rows (local.get $args)) (i32.const 20))))
    (i32.store (i32.const 276) (local.get $at))
    (i32.store (i32.const 280) (call $rows (local.get $args)))
    (i32.store (i32.const 284) (i32.const 224))
    (i32.store (i32.const 288) (i32.const 1))
    ;;PLACE
    (block $done
      (loop $next
        (br_if $done (i32.ge_u (local.get $row) (call $rows (local.get $args))))
        (local.set $fit (call $number (local.get $args) (local.get $row) (i32.const 0)))
        (local.set $score (call $number (local.get $args) (local.get $row) (i32.const 1)))
        (if (i64.eq (local.get $fit) (i64.const 666)) (then
          ;;POISONED
        ))
        (if (i64.ge_s (local.get $fit) (i64.const 1)) (then
          (i32.store8 (local.get $at) (select (i32.const 1) (i32.const 2) (i64.eq (local.get $fit) (i64.const 1))))
          (i32.store offset=4 (local.get $at) (i32.wrap_i64 (local.get $fit)))
          (i32.store8 offset=12 (local.get $at) (i32.const 1))))
        (if (i64.ge_s (local.get $score) (i64.const 1)) (then
          (i32.store8 offset=8 (local.get $at) (i32.const 1))
          (i32.store8 offset=9 (local.get $at) (i32.wrap_i64 (i64.sub (local.get $score) (i64.const 1))))))
        (local.set $at (i32.add (local.get $at) (i32.const 20)))
        (local.set $row (i32.add (local.get $row) (i32.const 1)))
        (br $next)))
    (i32.const 272))

  ;;LEASE_EXPORTS

  (func $forever (loop $again (br $again)))
)
