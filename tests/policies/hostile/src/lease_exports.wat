  (func (export "kubeocean:policy/lease@1.0.0#[static]lease-evaluator.create") (param $settings i32) (param $length i32) (result i32)
    (i32.store8 (i32.const 256) (i32.const 0))
    (i32.store (i32.const 260) (call $lease_resource_new (i32.const 1)))
    (i32.const 256))
  ;; It reads nothing: 40 bytes of zeros.
  (func (export "kubeocean:policy/lease@1.0.0#[method]lease-evaluator.needs") (param i32) (result i32) (i32.const 320))
  ;; Result at 400: ok 0, rows 404, caps 412, reasons 420. A row of 40 zeros is an offer.
  (func (export "kubeocean:policy/lease@1.0.0#[method]lease-evaluator.lease") (param $args i32) (result i32)
    (i32.store (i32.const 404) (call $alloc (i32.mul (i32.load offset=64 (local.get $args)) (i32.const 40))))
    (i32.store (i32.const 408) (i32.load offset=64 (local.get $args)))
    (i32.const 400))
