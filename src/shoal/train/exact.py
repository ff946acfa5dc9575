"""What exact mode, the recipe's `parallel.exact`, fixes in a recipe, and what it can't work with."""

from shoal.core.errors import RecipeError
from shoal.core.recipe import Recipe
from shoal.core.recipe_file import build_recipe, recipe_tree


def resolve(recipe: Recipe, world: int) -> Recipe:
    """The recipe with exact mode's cut of the batch, or as it is without that mode.

    Micro-batch v of a step must have the same positions on any number of ranks, and ranks whole branches of the tree.
    Raises `RecipeError` for what would make bits depend on the number of ranks, or on the clock.
    """
    train, shards = recipe.train, recipe.parallel.virtual_shards
    if not recipe.parallel.exact:
        return recipe
    if recipe.parallel.shard != "replicate" or recipe.parallel.tensor > 1:
        raise RecipeError(
            "parallel.exact sums whole gradients in one order, and every rank needs all of the model for it: set "
            "parallel.shard replicate and parallel.tensor 1"
        )
    if recipe.parallel.codec.kind != "none":
        raise RecipeError("parallel.exact sums every bit, and a codec drops some: set parallel.codec.kind none")
    if not _power_of_two(shards):
        raise RecipeError(
            f"parallel.virtual_shards is {shards}; exact mode sums them in pairs: give a power of two, such as 8"
        )
    if train.global_batch % shards:
        raise RecipeError(
            f"train.global_batch is {train.global_batch}, which {shards} virtual shards can't share equally: give a "
            f"multiple of {shards}, or another parallel.virtual_shards"
        )
    if recipe.schedule.batch_start % shards:
        raise RecipeError(
            f"schedule.batch_start is {recipe.schedule.batch_start}, which {shards} virtual shards can't share equally: "
            f"give a multiple of {shards}"
        )
    size = train.global_batch // shards
    if train.micro_batch not in (0, size):
        raise RecipeError(
            f"train.micro_batch is {train.micro_batch}, but parallel.exact computes one virtual shard at a time: "
            f"give {size} (global_batch / virtual_shards), or 0"
        )
    if train.minutes:
        raise RecipeError(
            "train.minutes ends a run by the clock, which never repeats, so parallel.exact can't have it: "
            "set it to 0 and give train.steps or train.tokens"
        )
    if not _power_of_two(world) or world > shards:
        raise RecipeError(
            f"{world} ranks can't have equal branches of the sum with parallel.exact; accepted: a power of two up to "
            f"parallel.virtual_shards, which is {shards}"
        )
    tree = recipe_tree(recipe)
    tree["train"]["micro_batch"], tree["data"]["partition"] = size, "blocks"
    return build_recipe(tree)


def _power_of_two(number: int) -> bool:
    return number & (number - 1) == 0
