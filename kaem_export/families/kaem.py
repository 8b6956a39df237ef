"""A KAEM as a graph: its prior's quantile tables by the layout that fits it, then the generator."""

from __future__ import annotations

from typing_extensions import override

from kaem.artifact import Figure, Manifest
from kaem.config import to_mapping
from kaem_export.families.family import Compiled, Description, ExportedFamily, Request, Subject
from kaem_export.graph import build_graph
from kaem_export.priors.layouts import choose_layout
from kaem_export.priors.manifest_entries import densities, describe_tables, energies_field, u_error_bound
from kaem_export.proof.head import keeps_components, require_head
from kaem_export.proof.images import generator_figures
from kaem_export.proof.latents import MeasuredPrior, latent_distance
from kaem_export.tables.fit_tables import bake
from kaem_train.config.settings import Config
from kaem_train.families.kaem import Kaem


class ExportedKaem(ExportedFamily[Kaem]):
    """The energy model that this project is about."""

    manifest_names = ("kaem",)

    @override
    def compile(self, config: Config, model: Kaem, request: Request) -> Compiled:
        request.sampling.refuse_steps(config.family)
        layout = choose_layout(model.prior, keep_components=request.keep_components)
        baked = bake(layout.laws, request.tolerance)
        graph, head = build_graph(layout, baked.tables, model.generator, request.image_type)
        return Compiled(
            graph=graph,
            description=Description(
                family="kaem",
                name=config.name,
                noise_dim=layout.noise_dim,
                latent_dim=config.prior.num_latents,
                prior={**to_mapping(config.prior), **describe_tables(layout, baked)},
            ),
            head=head.describe(),
            densities=densities(layout),
        )

    @override
    def describe(self, config: Config, manifest: Manifest) -> Description:
        prior = config.prior
        num_uniforms = prior.num_uniforms
        if keeps_components(manifest, prior):
            num_uniforms *= {"mixture": 2, "independent": prior.num_components}[prior.variant]
        return Description(
            family="kaem",
            name=config.name,
            noise_dim=num_uniforms,
            latent_dim=prior.num_latents,
            prior=to_mapping(prior),
        )

    @override
    def measure(self, subject: Subject[Kaem]) -> tuple[Figure, ...]:
        manifest, prior = subject.sampler.manifest, subject.model.prior
        layout = choose_layout(prior, keep_components=keeps_components(manifest, subject.config.prior))
        require_head(manifest, layout.kind, has_quantiles=not layout.is_affine)
        measured = MeasuredPrior(
            sampler=subject.sampler,
            artifact=subject.artifact,
            state=subject.model.state_dict(),
            prior=subject.config.prior,
            u_error_bound=u_error_bound(layout, subject.tolerance),
            tolerance=subject.tolerance,
        )
        return (
            *layout.measure(measured),
            *latent_distance(subject.sampler),
            *generator_figures(subject.sampler, subject.artifact, subject.config, subject.model.generator),
        )

    @override
    def energies(self, model: Kaem) -> str | None:
        return energies_field(model.prior)
