"""Training loops that others wrote: pruned weights are 0.0 after every step, in averages, and in what was saved."""

import copy

import pytest
import torch
from torch import nn

import gentickets as gt


class ShadowEMA:
    """An average as diffusers' `EMAModel` and torch-ema keep it: tensors in the order of the parameters."""

    def __init__(self, parameters):
        self.shadow_params = [p.clone().detach() for p in parameters]

    @torch.no_grad()
    def step(self, parameters):
        for shadow, parameter in zip(self.shadow_params, parameters, strict=True):
            shadow.lerp_(parameter.detach(), 0.1)


def gan():
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "generator": nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6)),
            "discriminator": nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1)),
        }
    )


def alive(tensors, model, masks):
    """How many pruned weights are not 0.0 among these, in the order of the model's parameters."""
    named = dict(zip((n for n, _ in model.named_parameters()), tensors, strict=True))
    return sum(int((named[name][~masks[name]] != 0).sum()) for name in masks if name in named)


@pytest.mark.parametrize("frozen", [False, True])
def test_an_average_that_is_a_list_of_tensors_is_a_copy_too(frozen):
    model = gan()
    model["discriminator"].requires_grad_(not frozen)
    trained = [p for p in model.parameters() if p.requires_grad]
    average = ShadowEMA(trained)  # made before anything is masked
    masks = gt.prune(gt.magnitude(model), fraction=0.5, scope="layer")
    adam = torch.optim.Adam(trained, 0.1)
    with masks.hold(model, adam, copies=average) as hold:
        for _ in range(3):
            adam.zero_grad()
            model["discriminator"](model["generator"](torch.randn(8, 3))).square().mean().backward()
            adam.step()
            average.step(trained)
            hold.audit()
        # Another list, as after loading a state: what counts is what is there now.
        average.shadow_params = [shadow.clone() for shadow in average.shadow_params]
        hold.audit()
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    shadows = dict(zip(names, average.shadow_params, strict=True))
    assert not any(shadows[name][~masks[name]].any() for name in masks if name in shadows)
    with pytest.raises(gt.MaskError, match="averaged copy"), masks.hold(model, copies=[average]):
        average.shadow_params[0].fill_(1.0)


def test_an_average_of_one_component_follows_masks_that_move():
    model = gan()
    average = ShadowEMA(model["generator"].parameters())
    masks = gt.prune(gt.magnitude(model), fraction=0.5, scope="layer")
    with masks.hold(model, copies={"generator": average}) as hold:
        shadows = average.shadow_params
        assert alive(shadows, model["generator"], masks_of(masks, "generator")) == 0
        other = gt.random_like(masks, 1)
        hold.move_to(other)
        assert alive(shadows, model["generator"], masks_of(other, "generator")) == 0
    with pytest.raises(gt.MaskError, match=r"ShadowEMA keeps 4 tensors.*parameters"):
        masks.hold(model, copies=ShadowEMA([torch.zeros(2)] * 4))


def masks_of(masks, component):
    return gt.Masks({n.partition(".")[2]: masks[n] for n in masks if n.startswith(component)})


def test_masks_of_some_weights_only():
    masks = gt.Masks.dense(gan())
    assert list(masks.only(["generator.0.weight", "elsewhere"])) == ["generator.0.weight"]
    assert masks.only(()).total == 0


# -- Accelerate -------------------------------------------------------------------------------------------------


@pytest.fixture
def accelerate():
    """Without the precision that another test's `Accelerator` has set for the process; its own tests do the same."""
    package = pytest.importorskip("accelerate")
    package.state.AcceleratorState._reset_state(reset_partial_state=True)
    yield package
    package.state.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.models
@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("prepared", [True, False])
def test_accelerate_accumulates_and_clips_as_a_plain_loop_does(prepared, precision, accelerate, tmp_path):
    batches = torch.randn(12, 8, 3, generator=torch.Generator().manual_seed(2))
    models = []
    for own in (True, False):
        model = gan()
        masks = gt.prune(gt.magnitude(model), fraction=0.6, scope="layer")
        adam = torch.optim.AdamW(model.parameters(), 0.05)
        accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=3)
        net, stepper = (model, adam) if own else accelerator.prepare(model, adam)
        with masks.hold(*((net, stepper) if prepared else (model, adam))) as hold:
            for index, batch in enumerate(batches):
                if own:
                    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                        loss = model["generator"](batch)
                    loss.float().square().mean().div(3).backward()
                    if index % 3 == 2:
                        hold.mask_gradients()
                        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                        adam.step()
                        adam.zero_grad()
                else:
                    with accelerator.accumulate(net):
                        with accelerator.autocast():
                            loss = net["generator"](batch)
                        accelerator.backward(loss.float().square().mean())
                        if accelerator.sync_gradients:
                            hold.mask_gradients()
                            accelerator.clip_grad_norm_(net.parameters(), 0.1)
                        stepper.step()
                        stepper.zero_grad()
                masks.audit(model)
            if not own:
                accelerator.save_state(tmp_path / "state")
                with torch.no_grad():
                    model["generator"][0].weight.fill_(1.0)
                accelerator.load_state(tmp_path / "state")
        masks.audit(model)
        models.append(model.state_dict())
    assert all(torch.equal(tensor, models[1][name]) for name, tensor in models[0].items())


# -- Lightning --------------------------------------------------------------------------------------------------


def lightning_gan(lightning, by_hand):
    class Gan(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.generator, self.discriminator = gan().children()
            self.automatic_optimization = not by_hand

        def training_step(self, batch, index):
            if not by_hand:
                return self.discriminator(self.generator(batch)).square().mean()
            for optimizer, sign in zip(self.optimizers(), (1, -1), strict=True):
                self.toggle_optimizer(optimizer)
                optimizer.zero_grad()
                self.manual_backward(sign * self.discriminator(self.generator(batch)).mean())
                self.clip_gradients(optimizer, 0.5, "norm")
                optimizer.step()
                self.untoggle_optimizer(optimizer)
            return None

        def configure_optimizers(self):
            if by_hand:
                return [torch.optim.Adam(net.parameters(), 0.01) for net in (self.generator, self.discriminator)]
            return torch.optim.AdamW(self.parameters(), 0.01)

    return Gan()


@pytest.mark.models
@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_lightning_trains_checkpoints_and_averages_what_is_sparse(averaged, by_hand, tmp_path):
    lightning = pytest.importorskip("lightning")
    from lightning.pytorch.callbacks import Callback, ModelCheckpoint, WeightAveraging

    class Held(Callback):
        def on_train_start(self, trainer, module):
            given = module.optimizers() if by_hand else trainer.optimizers  # Lightning's wrappers, or torch's own
            self.hold = masks.hold(module, *given)
            self.hold.__enter__()

        def on_train_batch_end(self, trainer, module, *_):
            self.hold.audit()

        def on_train_end(self, trainer, module):
            self.hold.__exit__(None, None, None)

    model = lightning_gan(lightning, by_hand)
    masks = gt.prune(gt.magnitude(model), fraction=0.6, scope="layer")
    masks.apply_(model)
    before = copy.deepcopy(model.state_dict())
    saved = ModelCheckpoint(tmp_path, save_last=True)
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", precision="bf16-mixed",
        callbacks=[Held(), saved] + [WeightAveraging()] * averaged,
        accumulate_grad_batches=1 if by_hand else 2, logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(model, torch.utils.data.DataLoader(torch.randn(32, 3), batch_size=8))
    masks.audit(model)
    assert any(not torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    twin = lightning_gan(lightning, by_hand)
    twin.load_state_dict(torch.load(saved.last_model_path, weights_only=False)["state_dict"])
    masks.audit(twin)


# -- transformers -----------------------------------------------------------------------------------------------


@pytest.mark.models
def test_the_trainer_of_transformers_goes_on_from_its_checkpoint(tmp_path):
    transformers = pytest.importorskip("transformers")

    class Held(transformers.TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, optimizer=None, **_):
            self.hold = masks.hold(model, optimizer)
            self.hold.__enter__()

        def on_step_end(self, *_, **__):
            self.hold.audit()

        def on_train_end(self, *_, **__):
            self.hold.__exit__(None, None, None)

    config = transformers.GPT2Config(vocab_size=60, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    model = transformers.GPT2LMHeadModel(config)
    masks = gt.prune(gt.magnitude(model, include="*.c_*.weight"), fraction=0.7)
    rows = [{key: torch.randint(0, 60, (8,)) for key in ("input_ids", "labels")} for _ in range(16)]
    options = transformers.TrainingArguments(
        str(tmp_path), max_steps=4, per_device_train_batch_size=4, use_cpu=True, bf16=True, report_to=[],
        gradient_accumulation_steps=2, save_steps=2, disable_tqdm=True,
    )  # fmt: skip
    trainer = transformers.Trainer(model, options, train_dataset=rows, callbacks=[Held()])
    trainer.train()
    masks.audit(model)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    masks.audit(model)
    again = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "checkpoint-4")
    assert gt.Masks.of_zeros(again, include=list(masks)) == masks


# -- diffusers --------------------------------------------------------------------------------------------------


@pytest.mark.models
@pytest.mark.filterwarnings("error::UserWarning")
def test_an_average_of_diffusers_is_swapped_in_saved_and_loaded(tmp_path):
    training, diffusers = pytest.importorskip("diffusers.training_utils"), pytest.importorskip("diffusers")
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8,), norm_num_groups=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), add_attention=False,
    )  # fmt: skip
    average = training.EMAModel(unet.parameters(), decay=0.9, model_cls=type(unet), model_config=unet.config)
    average.optimization_step = 5  # as when one goes on: the first step does not copy everything
    masks = gt.prune(gt.magnitude(unet), fraction=0.7, scope="layer")
    adam = torch.optim.AdamW(unet.parameters(), 0.01)
    images, steps = torch.randn(2, 1, 8, 8), torch.tensor([3, 5])
    with masks.hold(unet, adam, copies=average) as hold:
        for _ in range(3):
            adam.zero_grad()
            unet(images, steps).sample.sub(1).square().mean().backward()
            adam.step()
            average.step(unet.parameters())
            average.store(unet.parameters())  # a validation with the average
            average.copy_to(unet.parameters())
            with torch.no_grad():
                unet(images, steps)
            average.restore(unet.parameters())
            hold.audit()
        average.save_pretrained(tmp_path)
        average.load_state_dict(average.state_dict())
    again = training.EMAModel.from_pretrained(tmp_path, type(unet))
    for tensors in (average.shadow_params, again.shadow_params):
        assert alive(tensors, unet, masks) == 0
